"""Events while they happen: lines of JSON for programs, a live board on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import grpc
from rich.console import Group, RenderableType
from rich.text import Text

from neuroweaver.cli.terminal.output import console, print_event, print_view


class Board(Protocol):
    """What a terminal shows live."""

    def add(self, event: Any, /) -> None: ...

    def render(self) -> RenderableType: ...


class Display:
    """line: an event where there is no terminal; empty for none."""

    def __init__(self, board: Board, line: Callable[[Any], str | Text | None], *, as_json: bool) -> None:
        self._board, self._line, self._as_json = board, line, as_json
        self._is_broken = False
        self.is_live = not as_json and console().is_terminal

    def show(self, event: Any) -> None:
        self._board.add(event)
        self._is_broken = False
        if self._as_json:
            print_event(event)
        elif not self.is_live and (line := self._line(event)):
            print_view(line)

    def interrupted(self, _error: grpc.RpcError) -> None:
        """The stream broke and is being resumed. Programs need not know: they miss nothing."""
        self._is_broken = True
        if not (self._as_json or self.is_live):
            print_view("connection lost, resuming")

    def render(self) -> RenderableType:
        broken = [Text("connection lost, resuming…", "yellow")] if self._is_broken else []
        return Group(self._board.render(), *broken)


@contextmanager
def display(board: Board, line: Callable[[Any], str | Text | None], *, as_json: bool) -> Iterator[Display]:
    """Shows events while the block runs."""
    shown = Display(board, line, as_json=as_json)
    if not shown.is_live:
        yield shown
        return
    from rich.live import Live  # noqa: PLC0415

    with Live(get_renderable=shown.render, console=console(), refresh_per_second=4):
        yield shown
