"""What a transaction changes in a project: every change of a deployment leaves its events with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Table, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.deployer.domain import history
from neuroweaver.deployer.domain.backend import Key, Line
from neuroweaver.deployer.domain.metrics.counts import Sample
from neuroweaver.deployer.domain.metrics.measurement import Tally
from neuroweaver.deployer.domain.model import SYSTEM, Deployment
from neuroweaver.deployer.storage import tables
from neuroweaver.deployer.storage.reader import RECORDS, Kept, Reader, of
from neuroweaver.mesh.database.upsert import upsert
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.v1 import deployer_pb2 as pb

LINES_KEPT: Final = 20_000
"""Of a deployment; older ones are dropped."""


def by_itself(key: Key) -> ChangeOrigin:
    """What the deployer itself changes of a deployment."""
    return ChangeOrigin(key.project, SYSTEM)


def events_topic(key: Key) -> str:
    return f"events/{key.name}/{key.model_id}/{key.project}"


def logs_topic(key: Key) -> str:
    return f"logs/{key.name}/{key.model_id}/{key.project}"


class Writer(Reader):
    """A write transaction. touched, logged: deployments with new events, with new lines of logs."""

    def __init__(self, connection: AsyncConnection, origin: ChangeOrigin, now: datetime) -> None:
        super().__init__(connection, origin.project)
        self.actor = origin.actor
        self.now = now
        self._origin = origin
        self.touched: set[Key] = set()
        self.logged: set[Key] = set()

    async def find(self, key: Key) -> Kept | None:
        """As the reader's, and nobody else changes it before this transaction ends."""
        table = tables.deployments
        held = select(table.c.name).where(of(table, key)).with_for_update()
        await self.connection.execute(held)
        return await super().find(key)

    async def save(
        self, before: Kept | None, after: Deployment, *, reason: str = "", cause: str = "SPEC"
    ) -> Kept:
        """Puts `after` in the place of `before`, which was read in this transaction, with what changed.

        before: None if there never was one; one that is gone if it is made again. reason: instead of the
        origin's, where it only shows in the transaction. cause: as `DeploymentScaled.cause`.
        """
        was = before.deployment if before and not before.deployment.is_gone else None
        if before is not None and was == after:
            return before
        if before is not None and was is None:
            _, last_line = await self.line_bounds(after.key)
            after = replace(after, first_line=last_line + 1)
            await self._forget_measured(after.key)
        origin = replace(self._origin, reason=reason or self._origin.reason)
        events = history.events_of(was, after, origin, self.now, cause)
        last = before.last_sequence if before else 0
        first = before.first_sequence if before and was else last + 1
        kept = Kept(after, last + len(events), first)
        values = {
            "resource_name": after.resource_name,
            "state": after.status.state,
            "alias": after.alias,
            "create_time": after.create_time,
            "last_sequence": kept.last_sequence,
            "first_sequence": kept.first_sequence,
            "record": RECORDS.dump(after),
        }
        table = tables.deployments
        if before is None:
            await self.connection.execute(insert(table).values(**asdict(after.key), **values))
        else:
            await self.connection.execute(update(table).where(of(table, after.key)).values(**values))
        await self._save_labels(was, after)
        await self._add_events(after.key, last, events)
        return kept

    async def _add_events(self, key: Key, last: int, events: Sequence[pb.DeploymentEvent]) -> None:
        for sequence, event in enumerate(events, last + 1):
            event.sequence = sequence
            event.time.FromDatetime(self.now)
            event.model_id, event.name = key.model_id, key.name
        rows = [
            {
                "sequence": event.sequence,
                "time": self.now,
                "actor": event.actor,
                "event": event.SerializeToString(deterministic=True),
            }
            for event in events
        ]
        if await self._insert(tables.events, key, rows):
            self.touched.add(key)

    async def _save_labels(self, before: Deployment | None, after: Deployment) -> None:
        if before is not None and before.spec.labels == after.spec.labels:
            return
        table, labels = tables.labels, after.spec.labels
        await self.connection.execute(delete(table).where(of(table, after.key)))
        await self._insert(table, after.key, [{"label": label, "value": labels[label]} for label in labels])

    @property
    def topics(self) -> set[str]:
        """What watches follow; what happens to a deployment may end its log, too."""
        events = {events_topic(key) for key in self.touched}
        return events | {logs_topic(key) for key in self.touched | self.logged}

    async def add_samples(self, key: Key, source: str, samples: Iterable[Sample]) -> None:
        origin = {"source": source, "actor": self.actor}
        numbered = enumerate(samples, await self.last_sample(key) + 1)
        rows = [{**asdict(sample), **origin, "sequence": sequence} for sequence, sample in numbered]
        await self._insert(tables.samples, key, rows)

    async def add_tallies(self, key: Key, tallies: Iterable[Tally]) -> None:
        """What the replicas have counted by now."""
        rows = [
            {"time": tally.time, "revision": tally.measured.revision, "record": RECORDS.dump(tally)}
            for tally in tallies
        ]
        await self._insert(tables.measurements, key, rows)

    async def _forget_measured(self, key: Key) -> None:
        """What was measured and reported: one that is made again numbers its revisions anew."""
        for table in (tables.measurements, tables.samples):
            await self.connection.execute(delete(table).where(of(table, key)))

    async def add_lines(self, key: Key, lines: Sequence[Line], cursors: Mapping[str, str]) -> None:
        """Lines of a deployment's replicas, and how far each replica's log is read with them."""
        _, last = await self.line_bounds(key)
        columns = ("time", "replica_id", "revision", "level", "message")
        rows = [
            {"sequence": sequence} | {column: getattr(line, column) for column in columns}
            for sequence, line in enumerate(lines, last + 1)
        ]
        table = tables.log_lines
        if await self._insert(table, key, rows):
            oldest = last + len(rows) - LINES_KEPT
            await self.connection.execute(delete(table).where(of(table, key), table.c.sequence <= oldest))
            self.logged.add(key)
        read = [
            {**asdict(key), "replica_id": replica_id, "cursor": cursor, "time": self.now}
            for replica_id, cursor in cursors.items()
        ]
        await upsert(self.connection, tables.log_cursors, read)

    async def forget_cursors(self, key: Key, replica_ids: Iterable[str], before: datetime) -> None:
        """Those of other replicas than these that nothing was read of since a moment."""
        table = tables.log_cursors
        is_other = table.c.replica_id.not_in(list(replica_ids))
        await self.connection.execute(delete(table).where(of(table, key), is_other, table.c.time < before))

    async def forget_logs(self, key: Key) -> None:
        """Where each replica's log was read to, after the replicas have gone; the lines stay."""
        table = tables.log_cursors
        await self.connection.execute(delete(table).where(of(table, key)))

    async def _insert(self, table: Table, key: Key, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Rows of a deployment; False if there are none."""
        if rows:
            await self.connection.execute(insert(table), [{**asdict(key), **row} for row in rows])
        return bool(rows)
