"""A change, as a watch sends it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from neuroweaver.registry.domain.records import Subject


@dataclass(frozen=True)
class Event:
    """A change. subject: as it was after the change; None if it is nothing the watch asked for."""

    sequence: int
    time: datetime | None = None
    action: str = ""
    subject: Subject | None = None
