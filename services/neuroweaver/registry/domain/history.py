"""The history of a project: who changed what, when and why, each event sealed by the hash of the one before.

Whoever edits, drops or reorders events must recompute every hash after them, and then the last hash is
another than the one that somebody noted elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.mesh.wire.signing import SigningKey, statement
from neuroweaver.registry.domain.records import FieldDifference, canonical

GENESIS: Final = "0" * 64
"""What stands in for a hash before the first event."""


@dataclass(frozen=True)
class Head:
    """The last event of a chain."""

    sequence: int = 0
    hash: str = GENESIS


@dataclass(frozen=True, kw_only=True)
class SignedHead:
    """A head to be kept elsewhere: it proves what the chain was, and who said so."""

    project: str
    head: Head
    time: datetime
    signature: bytes
    key_id: str
    public_key: bytes

    @classmethod
    def of(cls, key: SigningKey, project: str, head: Head, now: datetime) -> SignedHead:
        return cls(
            project=project,
            head=head,
            time=now,
            signature=key.sign(statement(project, head.sequence, head.hash, now)),
            key_id=key.key_id,
            public_key=key.public_key,
        )


@dataclass(frozen=True, kw_only=True)
class AuditEvent:
    project: str
    sequence: int
    time: datetime
    actor: str
    action: str
    model_id: str
    version: str
    reason: str
    changes: str
    """Canonical JSON, [[path, before, after], …]: kept as the very text that the hash covers."""
    trace_id: str
    previous_hash: str
    hash: str = ""

    def sealed(self) -> AuditEvent:
        """With its own hash."""
        return replace(self, hash=self.computed_hash())

    def computed_hash(self) -> str:
        """SHA-256 over everything but `hash`, as canonical JSON with the time in ISO 8601 UTC."""
        content = {name: value for name, value in vars(self).items() if name != "hash"}
        content["time"] = self.time.isoformat(timespec="microseconds")
        return hashlib.sha256(canonical(content).encode()).hexdigest()

    def listed_changes(self) -> list[FieldDifference]:
        return [FieldDifference(*change) for change in json.loads(self.changes)]


def next_event(
    head: Head,
    origin: ChangeOrigin,
    *,
    time: datetime,
    action: str,
    model_id: str,
    version: str,
    changes: Sequence[FieldDifference],
) -> AuditEvent:
    """The event that follows `head`."""
    return AuditEvent(
        project=origin.project,
        sequence=head.sequence + 1,
        time=time,
        actor=origin.actor,
        action=action,
        model_id=model_id,
        version=version,
        reason=origin.reason,
        changes=canonical([[change.path, change.a, change.b] for change in changes]),
        trace_id=origin.trace_id,
        previous_hash=head.hash,
    ).sealed()


@dataclass(frozen=True)
class Verdict:
    """What a check of the chain found. first_bad_sequence: 0 if it is whole."""

    events: int
    first_bad_sequence: int
    explanation: str
    head: Head


async def verify(events: AsyncIterator[AuditEvent], recorded: Head, expected: Head | None = None) -> Verdict:
    """Recomputes a chain.

    events: all of a project's, by sequence. recorded: where the store says that the chain ends. expected: an
    event that somebody noted earlier and that must still be in it.
    """
    head = Head()
    async for event in events:
        if wrong := _wrong_after(head, event, expected):
            return _broken(head, wrong)
        head = Head(event.sequence, event.hash)
    if max(recorded.sequence, expected.sequence if expected else 0) > head.sequence:
        return _broken(head, f"the events from {head.sequence + 1} on are missing")
    if recorded != head:
        return _broken(Head(head.sequence - 1), "the last event is not the recorded head of the chain")
    return Verdict(head.sequence, 0, "", head)


def _wrong_after(head: Head, event: AuditEvent, expected: Head | None) -> str:
    """Why `event` cannot stand after `head`; empty if it can."""
    if event.sequence != head.sequence + 1:
        return f"event {head.sequence + 1} is missing"
    if event.previous_hash != head.hash:
        return f"event {event.sequence} does not follow the event before it"
    if event.computed_hash() != event.hash:
        return f"event {event.sequence} was edited"
    if expected and expected.sequence == event.sequence and expected.hash != event.hash:
        return f"event {event.sequence} differs from the one noted earlier"
    return ""


def _broken(head: Head, explanation: str) -> Verdict:
    return Verdict(head.sequence, head.sequence + 1, explanation, head)
