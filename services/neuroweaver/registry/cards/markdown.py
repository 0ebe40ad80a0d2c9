"""Markdown (CommonMark with GitHub's tables) in which foreign text stays text."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Final

from neuroweaver.registry.comparison.wording import line, plain

_MARKS: Final = re.compile(r"([\\`*_\[\]|~$])")
# What makes a line a heading, a list, a rule, a quotation or a definition.
_BLOCK_MARK: Final = re.compile(r"^([#+=:-]|\d+(?=[.)]))")
# Within a code span nothing is escaped, so only what needs no escaping goes there.
_CODE: Final = re.compile(r"[^`|<>&\n]*[^`|<>&\s][^`|<>&\n]*")


def text(value: str) -> str:
    """Foreign text on one line."""
    return _MARKS.sub(r"\\\1", html.escape(line(value), quote=False))


def quotation(value: str) -> str:
    """Foreign text of several paragraphs."""
    lines = [_BLOCK_MARK.sub(_escaped_mark, text(each)) for each in plain(value).strip().split("\n")]
    # Two spaces at its end keep a line's break.
    return "  \n".join(f"> {each}".rstrip() for each in lines)


def code(value: str) -> str:
    """A foreign name or value, verbatim where Markdown can show it so."""
    shown = line(value)
    return f"`{shown}`" if _CODE.fullmatch(shown) else text(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """header, rows: Markdown made by this module."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def fenced(language: str, lines: Sequence[str]) -> str:
    """lines: none begins with foreign text."""
    return "\n".join([f"```{language}", *lines, "```"])


def _escaped_mark(found: re.Match[str]) -> str:
    mark = found[1]
    return f"{mark}\\" if mark.isdecimal() else f"\\{mark}"
