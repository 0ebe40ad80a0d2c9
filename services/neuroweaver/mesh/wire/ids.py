"""Ids that sort by the time they were made."""

from __future__ import annotations

from ulid import ULID


def new_id() -> str:
    """A ULID: 26 characters of Crockford base 32, 48 bits of milliseconds and 80 random ones."""
    return str(ULID())
