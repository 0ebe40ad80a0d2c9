"""What a command prints: protobuf JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuroweaver.client.text import STATE_STYLES, plain

AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON (protobuf JSON, snake_case names) for programs.")
]

_PIPE_WIDTH: Final = 160


def console() -> Console:
    """As wide as the terminal; wide enough for whole lines where there is none."""
    plain_width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(highlight=False, width=plain_width)


def error_console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def to_json(message: Message) -> dict[str, Any]:
    """Every field has its key, set or not, except those that tell by their absence that they are unset."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def print_json(value: Any) -> None:
    """One document."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_json_line(value: Any) -> None:
    """One line of a stream, at once."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, empty: str) -> None:
    """empty: what is said instead of a table without rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(plain(cell)) for cell in row))
    console().print(table if table.row_count else Text(empty, style="dim"))


def print_facts(facts: Iterable[tuple[str, str | Text]]) -> None:
    """Names and values below each other; empty values are left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        if value:
            grid.add_row(name, value if isinstance(value, Text) else Text(plain(value)))
    console().print(grid)


def when(timestamp: Timestamp) -> str:
    """Local time to the second; empty for an unset one."""
    if not timestamp.seconds and not timestamp.nanos:
        return ""
    local: datetime = timestamp.ToDatetime(tzinfo=UTC).astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S}"


def state_text(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(state, ""))
