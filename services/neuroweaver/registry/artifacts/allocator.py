"""What the C library does with freed memory."""

from __future__ import annotations

import ctypes
from typing import Final

# mallopt(3), from malloc.h.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3

_MOST_KEPT_BYTES: Final = 64 * 1024 * 1024
_LARGEST_MESSAGE_BYTES: Final = 8 * 1024 * 1024


def keep_freed() -> None:
    """Lets the next message of a stream use the memory of the last, up to 64 MiB of it.

    By default glibc returns what one message took to the kernel and asks for it again page by page for the
    next, which was half of the CPU time of an upload. Without glibc nothing is changed.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_TRIM_THRESHOLD, _MOST_KEPT_BYTES)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_MESSAGE_BYTES)
