from __future__ import annotations

import pytest

from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.mesh.wire.keepable import keepable
from neuroweaver.mesh.wire.text import check_text


@pytest.mark.parametrize("text", ["", "a reason", "two\r\nlines\tof it", "naïve — 模型 🙂"])
def test_text_in_any_language_is_taken(text: str):
    check_text("reason", text)


@pytest.mark.parametrize("character", ["\0", "\x08", "\x0b", "\x1b", "\x7f"])
def test_control_characters_are_refused_by_the_name_of_the_field(character: str):
    with pytest.raises(InvalidArgument) as refused:
        check_text("reason", f"a{character}b")
    assert refused.value.violations == [("reason", "holds control characters")]


def test_what_cannot_be_kept_is_replaced():
    assert keepable("a\0b \udcff 🙂\n") == "a\ufffdb \ufffd 🙂\n"
    keepable("\ud83d").encode()
