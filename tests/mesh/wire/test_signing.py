from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from neuroweaver.mesh.wire import key_file
from neuroweaver.mesh.wire.environment import SettingsError
from neuroweaver.mesh.wire.signing import SigningKey, statement, verify

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
HASH = "ab" * 32
# RFC 8032, section 7.1, test 2.
RFC_SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
RFC_PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
RFC_SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "audit.pem"


def written(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def pem(key, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def test_signatures_are_those_of_rfc_8032():
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(RFC_SECRET))

    assert key.public_key.hex() == RFC_PUBLIC
    assert key.sign(b"\x72").hex() == RFC_SIGNATURE
    assert key.key_id == hashlib.sha256(bytes.fromhex(RFC_PUBLIC)).hexdigest()[:16]


def test_only_the_signed_message_with_its_key_verifies(path: Path):
    key, other = SigningKey.load_or_create(path), SigningKey(Ed25519PrivateKey.generate())
    signature = key.sign(b"message")

    assert verify(key.public_key, b"message", signature)
    assert not verify(key.public_key, b"massage", signature)
    assert not verify(other.public_key, b"message", signature)
    assert not verify(key.public_key, b"message", signature[:-1] + bytes([signature[-1] ^ 1]))
    assert not verify(key.public_key, b"message", b"")
    assert not verify(b"short", b"message", signature)


def test_a_key_is_made_once_and_found_again(path: Path):
    made = SigningKey.load_or_create(path)

    assert SigningKey.load_or_create(path).public_key == made.public_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert list(path.parent.iterdir()) == [path]


def test_a_generous_umask_does_not_open_the_key(path: Path):
    before = os.umask(0)
    try:
        SigningKey.load_or_create(path)
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_key_is_on_disk_before_it_appears(path: Path, monkeypatch: pytest.MonkeyPatch):
    happened = []
    sync, link = os.fsync, Path.hardlink_to

    def record_sync(descriptor: int) -> None:
        happened.append(stat.filemode(os.fstat(descriptor).st_mode)[0])
        sync(descriptor)

    def record_link(self: Path, target: Path) -> None:
        assert target.read_bytes().endswith(b"-----END PRIVATE KEY-----\n")
        happened.append("link")
        link(self, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "hardlink_to", record_link)

    SigningKey.load_or_create(path)

    assert happened == ["-", "link", "d"]


def test_whoever_is_second_takes_the_key_of_the_first(path: Path, monkeypatch: pytest.MonkeyPatch):
    winners = []
    token = key_file.secrets.token_hex

    def overtaken(size: int) -> str:
        monkeypatch.undo()
        winners.append(SigningKey.load_or_create(path))
        return token(size)

    monkeypatch.setattr(key_file.secrets, "token_hex", overtaken)

    second = SigningKey.load_or_create(path)

    assert second.key_id == winners[0].key_id == SigningKey.load_or_create(path).key_id
    assert list(path.parent.iterdir()) == [path]


def test_processes_that_start_together_get_one_key(path: Path, tmp_path: Path):
    program = (
        "import pathlib, sys, time; from neuroweaver.mesh.wire.signing import SigningKey\n"
        "go, key = map(pathlib.Path, sys.argv[1:])\n"
        "print('ready', flush=True)\n"
        "while not go.exists(): time.sleep(0)\n"
        "print(SigningKey.load_or_create(key).key_id)"
    )
    go = tmp_path / "go"
    command = [sys.executable, "-c", program, str(go), str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        go.touch()
        answers = {process.communicate(timeout=60)[0] for process in processes}
    finally:
        for process in processes:
            process.kill()
            process.communicate()

    assert answers == {SigningKey.load_or_create(path).key_id + "\n"}


def test_a_failed_creation_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match="No space left"):
        SigningKey.load_or_create(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o602, 0o601])
def test_a_key_that_others_can_use_is_refused_until_it_is_mended(path: Path, mode: int):
    written(path, pem(Ed25519PrivateKey.generate()), mode)

    with pytest.raises(SettingsError, match=r"audit.pem is open to other users: run chmod 600 on it"):
        SigningKey.load_or_create(path)
    path.chmod(0o600)
    assert SigningKey.load_or_create(path)


@pytest.mark.parametrize(
    ("owner", "mode", "refusal"),
    [
        ("root", 0o440, None),
        ("root", 0o444, "run chmod 440 on it"),
        ("root", 0o460, "run chmod 440 on it"),
        ("stranger", 0o400, "belongs to another user: run chown 1000 on it"),
    ],
)
def test_of_other_owners_only_root_may_give_a_key_to_a_group(
    monkeypatch: pytest.MonkeyPatch, owner, mode, refusal
):
    # As Kubernetes mounts a secret for a process that runs as user 1000.
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    uid = {"root": 0, "stranger": 1001}[owner]
    status = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, uid, 0, 0, 0, 0, 0))

    if refusal is None:
        key_file._check_secret(Path("key"), "signing key", status)
    else:
        with pytest.raises(SettingsError, match=refusal):
            key_file._check_secret(Path("key"), "signing key", status)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"secret words",
        pem(Ed25519PrivateKey.generate())[:-40],
        pem(generate_ec_key(SECP256R1())),
        pem(Ed25519PrivateKey.generate(), b"password"),
        Ed25519PrivateKey.generate().public_key().public_bytes_raw(),
    ],
    ids=["empty", "text", "cut", "other algorithm", "password", "raw public key"],
)
def test_a_file_that_is_no_such_key_is_refused_and_not_repeated(path: Path, content: bytes):
    written(path, content)

    with pytest.raises(SettingsError) as error:
        SigningKey.load_or_create(path)

    assert str(error.value) == f"the signing key {path} is no Ed25519 private key in PEM without a password"
    assert error.value.__cause__ is None
    assert path.read_bytes() == content


def test_a_pipe_in_its_place_is_refused_and_not_waited_for(path: Path):
    path.parent.mkdir()
    os.mkfifo(path, 0o600)

    with pytest.raises(SettingsError, match="is not a file"):
        SigningKey.load_or_create(path)


def test_a_key_tells_only_its_id(path: Path):
    key = SigningKey.load_or_create(path)

    assert repr(key) == str(key) == f"SigningKey({key.key_id})"


def test_the_signed_bytes_of_a_head_are_those_of_the_description():
    by_hand = (
        b"neuroweaver-audit-head-v1\0"
        + bytes([0, 0, 0, 5])
        + "café".encode()
        + bytes([0, 0, 0, 0, 0, 0, 1, 2])
        + b"\xab" * 32
        # date -u -d '2030-01-02 03:04:05' +%s, and the microseconds
        + (1_893_553_445_678_901).to_bytes(8, "big")
    )

    assert statement("café", 258, HASH, NOW) == by_hand


def test_the_same_moment_in_another_zone_is_the_same_statement():
    there = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))

    assert statement("p", 1, HASH, there) == statement("p", 1, HASH, NOW)


def test_every_part_of_a_head_is_signed():
    heads = [
        ("p", 1, HASH, NOW),
        ("q", 1, HASH, NOW),
        ("p\0", 1, HASH, NOW),
        ("", 1, HASH, NOW),
        ("p", 2, HASH, NOW),
        ("p", 1, "0" * 64, NOW),
        ("p", 1, HASH, NOW + timedelta(microseconds=1)),
    ]

    assert len({statement(*head) for head in heads}) == len(heads)


@pytest.mark.parametrize(
    "head",
    [
        ("p", -1, HASH, NOW),
        ("p", 1 << 63, HASH, NOW),
        ("p", 1, HASH[:-2], NOW),
        ("p", 1, HASH.upper(), NOW),
        ("p", 1, HASH + "\n", NOW),
        ("p", 1, HASH, NOW.replace(tzinfo=None)),
        ("\ud800", 1, HASH, NOW),
    ],
)
def test_what_is_no_head_is_not_stated(head):
    with pytest.raises(ValueError):
        statement(*head)
