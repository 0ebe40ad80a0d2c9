"""How far a transfer is, as a bar on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from neuroweaver.artifacts.transfer import OnProgress
from neuroweaver.cli.terminal.output import error_console


@contextmanager
def transfer_bar(what: str, sizes: Mapping[str, int] | None = None) -> Iterator[OnProgress | None]:
    """Shows what it is told while the block runs; nothing where stderr is no terminal.

    sizes: bytes of each file by its path in the version, where they are known beforehand.
    """
    screen = error_console()
    if not screen.is_terminal or sizes == {}:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    total, done = dict(sizes or {}), dict.fromkeys(sizes or {}, 0)
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task(what, total=sum(total.values()) or None)

        def on_progress(path: str, bytes_done: int, size: int) -> None:
            total[path], done[path] = size, bytes_done
            progress.update(task, total=sum(total.values()), completed=sum(done.values()))

        yield on_progress
