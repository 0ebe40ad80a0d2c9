"""Text that callers give."""

from __future__ import annotations

import re
from typing import Final

from neuroweaver.mesh.wire.errors import InvalidArgument

# Line breaks and tabs belong to prose; other control characters only deceive, and PostgreSQL takes no NUL.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def check_text(field: str, text: str) -> None:
    """Raises InvalidArgument naming the field for control characters."""
    if _CONTROL.search(text):
        raise InvalidArgument(field, "holds control characters")
