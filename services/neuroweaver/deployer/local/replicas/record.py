"""What a deployer killed at any moment leaves on disk about a replica, for the next one to find it again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

_NAME: Final = "replica.json"


@dataclass(frozen=True)
class Record:
    """target, frame, memory_limit_bytes: as `launch.Launch`. port: of the last start.
    gpus: how many it needs. devices: which ones it has, as `gpus` names them, from its last start on.

    The process itself is found by its command line, which names the replica's folder: a pid on disk could by
    now be another program's.
    """

    number: int
    revision: int
    version: str
    target: str
    frame: str
    port: int = 0
    restarts: int = 0
    cores: float = 0.0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    gpus: int = 0
    devices: Sequence[str] = ()
    phase_s: Mapping[str, float] = field(default_factory=dict)


def write(folder: Path, record: Record) -> None:
    """Whole or not at all. Not synced: after a power failure no process is left to be found."""
    write_json(folder / _NAME, asdict(record))


def read(folder: Path) -> Record | None:
    """None if there is none that can be read."""
    try:
        return Record(**json.loads((folder / _NAME).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def write_json(file: Path, value: object) -> None:
    part = file.with_suffix(".part")
    with open(part, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as target:
        json.dump(value, target)
    part.replace(file)
