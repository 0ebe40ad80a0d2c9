"""Markdown (CommonMark with GitHub's tables) in which foreign text stays text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Final

from neuroweaver.registry.comparison.wording import counted, line, plain

_MARKS: Final = re.compile(r"([\\`*_\[\]|~$])")
# What makes a line a heading, a list, a rule, a quotation or a definition.
_BLOCK_MARK: Final = re.compile(r"^([#+=:-]|\d+(?=[.)]))")
# Within a code span nothing is escaped, so only what needs no escaping goes there.
_CODE: Final = re.compile(r"[^`|<>&\n]*[^`|<>&\s][^`|<>&\n]*")
# Longer tables say how much they leave out.
_MAX_ROWS: Final = 500


class Markdown(str):
    """Markdown that is safe to put into a card as it is."""

    __slots__ = ()


def markdown(value: object) -> Markdown:
    """Foreign text on one line; Markdown as it is."""
    if isinstance(value, Markdown):
        return value
    return Markdown(_MARKS.sub(r"\\\1", html.escape(line(str(value)), quote=False)))


def quotation(value: str) -> Markdown:
    """Foreign text of several paragraphs."""
    lines = [_BLOCK_MARK.sub(_escaped_mark, markdown(part)) for part in plain(value).strip().split("\n")]
    # Two spaces at its end keep a line's break.
    return Markdown("  \n".join(f"> {part}".rstrip() for part in lines))


def code(value: str) -> Markdown:
    """A foreign name or value, verbatim where Markdown can show it so."""
    shown = line(value)
    return Markdown(f"`{shown}`") if _CODE.fullmatch(shown) else markdown(value)


def codes(values: Iterable[str]) -> Markdown:
    return Markdown(", ".join(map(code, values)))


def table(rows: Sequence[Sequence[object]], *header: object) -> Markdown:
    lines = [header, [Markdown("---")] * len(header), *rows[:_MAX_ROWS]]
    drawn = "\n".join(f"| {' | '.join(map(markdown, cells))} |" for cells in lines)
    if len(rows) > _MAX_ROWS:
        rest = counted(len(rows) - _MAX_ROWS, "more row", "more rows")
        drawn += f"\n\nAnd {rest}, which this card leaves out."
    return Markdown(drawn)


def facts(pairs: Iterable[tuple[str, str]]) -> Markdown:
    """A table of names and values, without those that have no value."""
    return table([pair for pair in pairs if pair[1]], "", "")


def _escaped_mark(match: re.Match[str]) -> str:
    mark = match[1]
    return f"{mark}\\" if mark.isdecimal() else f"\\{mark}"
