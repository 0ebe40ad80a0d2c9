"""Text that callers give, and text that comes from elsewhere."""

from __future__ import annotations

import re
from typing import Final

from neuroweaver.mesh.wire.errors import InvalidArgument

# Line breaks and tabs belong to prose; other control characters only deceive, and PostgreSQL takes no NUL.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# Half of a surrogate pair is no character, though JSON can escape it and file names can hold it.
_UNKEEPABLE: Final = re.compile(r"[\x00\ud800-\udfff]")


def keepable(text: str) -> str:
    """The text with a replacement character for what neither a message nor a database keeps."""
    return _UNKEEPABLE.sub("\ufffd", text)


def check_text(field: str, text: str) -> None:
    """Raises InvalidArgument naming the field for control characters."""
    if _CONTROL.search(text):
        raise InvalidArgument(field, "holds control characters")
