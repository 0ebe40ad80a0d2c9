"""A line of a model server's log: its level, and no more of it than is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

_LONGEST_BYTES: Final = 16 * 1024
_LEVEL: Final = re.compile(r"\b(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)\b")
_LEVELS: Final = {"WARN": "WARNING", "CRITICAL": "ERROR", "FATAL": "ERROR"}


def fields(line: str) -> Mapping[str, Any] | None:
    """Of a line that is a JSON object; None for a plain one."""
    if not line.startswith("{"):
        return None
    try:
        read = json.loads(line)
    except ValueError:
        return None
    return read if isinstance(read, dict) else None


def level(line: str) -> str:
    """DEBUG, INFO, WARNING or ERROR; empty if the line names none."""
    structured = fields(line)
    if structured is None:
        found = _LEVEL.search(line[:80])
    else:
        found = _LEVEL.fullmatch(str(structured.get("level", "")).upper())
    return _LEVELS.get(found[1], found[1]) if found else ""


def cut(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= _LONGEST_BYTES:
        return text
    return encoded[: _LONGEST_BYTES - 3].decode(errors="ignore") + "…"
