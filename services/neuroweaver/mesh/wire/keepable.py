"""Text that comes from elsewhere. Imports nothing, for processes that have little."""

from __future__ import annotations

import re
from typing import Final

# Half of a surrogate pair is no character, though JSON can escape it and file names can hold it.
_UNKEEPABLE: Final = re.compile(r"[\x00\ud800-\udfff]")


def keepable(text: str) -> str:
    """The text with a replacement character for what neither a message nor a database keeps."""
    return _UNKEEPABLE.sub("\ufffd", text)
