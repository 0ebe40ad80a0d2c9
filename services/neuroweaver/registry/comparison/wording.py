"""Names, numbers and lists in sentences for people."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final

_LONGEST_NAME: Final = 80
_NAMED: Final = 3
# Of control and format characters: line breaks, tabs, and the joiners of some scripts and of emoji.
_READABLE: Final = frozenset("\n\t\u200c\u200d")
_MOST_DIGITS: Final = 17


def plain(text: str) -> str:
    """The text without characters that hide, reorder or end others; line feeds and tabs stay."""
    if text.isprintable():
        return text
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_hidden(char) else char for char in lines)


def line(text: str) -> str:
    """A whole text on one line."""
    return " ".join(plain(text).split())


def legible(text: str) -> str:
    """A name on one line, at most 80 characters."""
    shown = line(text[: 4 * _LONGEST_NAME])
    return shown if len(shown) <= _LONGEST_NAME else shown[: _LONGEST_NAME - 1] + "…"


def number(value: float, digits: int = 3) -> str:
    """Significant digits, at least all before the point below a million."""
    if 10 ** (digits - 1) <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value + 0.0:.{digits}g}"  # 0.0: no minus before a zero


def numbers_apart(a: float, b: float) -> tuple[str, str]:
    """Both with as few digits as tell them apart."""
    for digits in range(3, _MOST_DIGITS):
        shown = number(a, digits), number(b, digits)
        if a == b or shown[0] != shown[1]:
            return shown
    return repr(a), repr(b)


def signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)


def p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def percent(share: float) -> str:
    return f"{share * 100:.4g}%"


def counted(count: int, one: str, many: str = "") -> str:
    """`1 metric`, `2 metrics`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`, `a, b, c and 4 more`."""
    shown = list(parts[:_NAMED])
    if len(parts) > _NAMED:
        shown.append(f"{len(parts) - _NAMED} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def short(digest: str) -> str:
    """The beginning of a digest, enough to tell it from others."""
    return f"{digest[:12]}…"


def _is_hidden(char: str) -> bool:
    return char not in _READABLE and unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
