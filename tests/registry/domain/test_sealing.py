from __future__ import annotations

import pytest

from neuroweaver.mesh.wire.environment import SettingsError
from neuroweaver.registry.domain.sealing import Seal, SealBroken, is_sealed
from neuroweaver.registry.domain.webhook import new_secret


def test_what_was_sealed_opens_for_the_same_webhook_alone():
    seal, secret = Seal(b"k" * 64), new_secret()
    sealed = seal.seal(secret, "p", "hook")

    assert (is_sealed(sealed), is_sealed(secret), len(sealed)) == (True, False, 64)
    assert seal.open(sealed, "p", "hook") == secret
    for other in (("p", "other"), ("q", "hook"), ("ph", "ook")):
        assert not seal.opens(sealed, *other)
    with pytest.raises(SealBroken):
        Seal(b"f" * 64).open(sealed, "p", "hook")


@pytest.mark.parametrize("sealed", ["", "AAAA", "no base64", "whsec_AAAA", "\u00e4" * 64])
def test_what_is_no_seal_breaks(sealed):
    with pytest.raises(SealBroken):
        Seal(b"k" * 64).open(sealed, "p", "hook")


def test_the_key_is_made_once_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "deep" / "key"
    sealed = Seal.load_or_create(path).seal(new_secret(), "p", "hook")

    assert Seal.load_or_create(path).opens(sealed, "p", "hook")
    assert path.stat().st_mode & 0o077 == 0


def test_a_file_that_is_no_key_is_refused_without_its_content(tmp_path):
    path = tmp_path / "key"
    path.write_text("hunter2")
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="no 64 bytes in base64") as refused:
        Seal.load_or_create(path)
    assert "hunter2" not in str(refused.value)
