"""What a command prints: protobuf JSON for programs, lines and tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from typer import Option

from neuroweaver.cli.terminal.failures import Failure
from neuroweaver.client.text import plain

M = TypeVar("M", bound=Message)

AsJson = Annotated[
    bool, Option("--json", help="Print JSON for programs: protobuf JSON with snake_case names.")
]

_PIPE_WIDTH: Final = 160


def console() -> Console:
    """As wide as the terminal; wide enough for whole lines where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def error_console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def to_json(message: Message) -> dict[str, Any]:
    """Every field has its key, set or not, except those whose absence means that they are unset."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def print_json(value: Any) -> None:
    """One document."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_event(event: Message) -> None:
    """One line of JSON, at once."""
    sys.stdout.write(json.dumps(to_json(event), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_answer(answer: M, view: Callable[[M], RenderableType], *, as_json: bool) -> None:
    """view: the answer for people. Text stays on one line, however narrow the terminal is."""
    if as_json:
        print_json(to_json(answer))
    else:
        print_view(view(answer))


def print_view(shown: RenderableType) -> None:
    line = Text(plain(shown)) if isinstance(shown, str) else shown
    console().print(line, soft_wrap=isinstance(line, Text))


def print_list(
    name: str, items: Iterable[M], columns: Mapping[str, Callable[[M], str | Text]], *, as_json: bool
) -> None:
    """Prints the items, under `name` in JSON, else a row each. columns: how a cell is made, by heading."""
    listed = list(items)
    if as_json:
        print_json({name: [to_json(item) for item in listed]})
    else:
        rows = ([cell(item) for cell in columns.values()] for item in listed)
        print_table(list(columns), rows, empty=f"No {name}.")


def print_failure(failure: Failure, *, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(json.dumps(failure.to_json(), ensure_ascii=False) + "\n")
    else:
        error_console().print(Text.assemble(("neuroweaver: ", "bold red"), failure.message))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, empty: str) -> None:
    """empty: printed instead of a table without rows."""
    shown = listing(columns, rows)
    console().print(shown if shown.row_count else Text(empty, style="dim"))


def listing(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """A table of things, whose names in the first column stay whole."""
    return table(columns, rows, unbroken=(0,), style="bold")


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Sequence[int] = (),
    unbroken: Sequence[int] = (),
    style: str = "dim",
) -> Table:
    """right: columns that are flushed right; unbroken: those that never break over lines."""
    shown = Table(box=None, pad_edge=False, header_style=style)
    for place, heading in enumerate(columns):
        justify: Any = "right" if place in right else "left"
        shown.add_column(Text(plain(heading)), justify=justify, no_wrap=place in unbroken, overflow="fold")
    for row in rows:
        shown.add_row(*map(_cell, row))
    return shown


def stacked(*blocks: RenderableType | None) -> Group:
    """The blocks that are not None, with an empty line between them."""
    parts = [part for block in blocks if block is not None for part in (Text(), block)]
    return Group(*parts[1:])


def facts(pairs: Iterable[tuple[str, str | Text]]) -> Table:
    """Names and values below each other; empty values are left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            grid.add_row(name, _cell(value))
    return grid


def _cell(value: str | Text) -> Text:
    """Text from elsewhere without control characters; a Text as it is."""
    return value if isinstance(value, Text) else Text(plain(value))


def when(timestamp: Timestamp) -> str:
    """Local time to the second; empty for an unset one."""
    if not timestamp.seconds and not timestamp.nanos:
        return ""
    local: datetime = timestamp.ToDatetime(tzinfo=UTC).astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S}"


def counted(count: int, noun: str) -> str:
    """`1 file`, `3 files`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
