"""The logs of one replica: a file for each start, its name the revision and the number of the start."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from neuroweaver.deployer.domain.backend import Line
from neuroweaver.deployer.model_servers import logs

_NAME: Final = re.compile(r"(\d{8})-r(\d+)\.log")
_KEPT: Final = 5
_TAIL_BYTES: Final = 64 * 1024
_LARGEST_BYTES: Final = 16 << 20
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?")


def new_file(folder: Path, revision: int) -> Path:
    """For a further start; the oldest files beyond five are deleted."""
    files = _files(folder)
    for old in files[: -(_KEPT - 1)]:
        old.unlink(missing_ok=True)
    number = int(files[-1].name[:8]) + 1 if files else 1
    return folder / f"{number:08d}-r{revision}.log"


def bound(folder: Path, largest_bytes: int = _LARGEST_BYTES) -> None:
    """Empties the file of the running process if it is larger; that one appends, and goes on at its start."""
    files = _files(folder)
    if files and files[-1].stat().st_size > largest_bytes:
        os.truncate(files[-1], 0)


def lines(folder: Path, replica_id: str, cursor: str) -> list[Line]:
    """The complete lines after `cursor`; all that are kept if it is empty. Blocks.

    The cursor of a line is where the next one begins.
    """
    after_name, _, after_at = cursor.partition(":")
    begins = {after_name: int(after_at or 0)}
    later = [file for file in _files(folder) if file.name >= after_name]
    return [line for file in later for line in _lines(file, replica_id, begins.get(file.name, 0))]


def last_words(folder: Path) -> list[str]:
    """The end of the last start's log, in order, without lines that only inform. Blocks."""
    files = _files(folder)
    if not files:
        return []
    with files[-1].open("rb") as file:
        file.seek(max(0, files[-1].stat().st_size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if _message(line)[2] not in {"DEBUG", "INFO"}]


def _lines(file: Path, replica_id: str, begin: int) -> Iterator[Line]:
    matched = _NAME.fullmatch(file.name)
    revision = int(matched[2]) if matched else 0
    try:
        with file.open("rb") as source:
            state = file.stat()
            time = datetime.fromtimestamp(state.st_ctime, UTC)
            # One that was emptied meanwhile is read from its start.
            at = begin if begin <= state.st_size else 0
            source.seek(at)
            for raw in source:
                if not raw.endswith(b"\n"):
                    return
                at += len(raw)
                message, stamp, level = _message(raw.decode(errors="replace").rstrip())
                time = stamp or time
                if message:
                    cursor = f"{file.name}:{at:012d}"
                    yield Line(replica_id, revision, time, logs.cut(message), level, cursor)
    except FileNotFoundError:
        return


def _message(line: str) -> tuple[str, datetime | None, str]:
    """The message, its time and its level, as far as the line has them."""
    level, fields = logs.level(line), logs.fields(line)
    if fields is None:
        return line, _time(line[:40]), level
    text = str(fields.get("message") or fields.get("msg") or line)
    if exception := str(fields.get("exception") or "").strip():
        text += f": {exception.splitlines()[-1]}"
    return text, _time(str(fields.get("time") or fields.get("timestamp") or "")), level


def _time(text: str) -> datetime | None:
    matched = _TIME.search(text)
    if not matched:
        return None
    try:
        time = datetime.fromisoformat(matched[0].replace(",", "."))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.log") if _NAME.fullmatch(file.name))
