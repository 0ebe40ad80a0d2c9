"""Who makes a change, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChangeOrigin:
    """actor: who makes the change, in which project. reason: in the actor's words. trace_id: of the call."""

    project: str
    actor: str
    reason: str = ""
    trace_id: str = ""
