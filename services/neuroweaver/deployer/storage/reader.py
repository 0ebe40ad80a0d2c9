"""What a transaction reads of a project: deployments and what belongs to them, never rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Table, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.deployer.domain.backend import Key, Line
from neuroweaver.deployer.domain.metrics.counts import Sample
from neuroweaver.deployer.domain.metrics.measurement import Tally
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.deployer.domain.specification import backup_of
from neuroweaver.deployer.storage import tables
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers import filters
from neuroweaver.mesh.wire.errors import InvalidArgument, NotFound
from neuroweaver.mesh.wire.records import Records
from neuroweaver.v1 import deployer_pb2 as pb

LABELS: Final = "labels."
RECORDS: Final = Records()
"""How deployments and measurements are written: as JSON, in the `record` columns of the tables."""


@dataclass(frozen=True)
class Kept:
    """A deployment as it is stored. sequences: of its last event, and of the first since it was made last."""

    deployment: Deployment
    last_sequence: int
    first_sequence: int


class Reader:
    """What one transaction sees of a project."""

    def __init__(self, connection: AsyncConnection, project: str) -> None:
        self.connection = connection
        self.project = project

    async def find(self, key: Key) -> Kept | None:
        """Also one that is gone."""
        table = tables.deployments
        row = (await self.connection.execute(select(table).where(of(table, key)))).one_or_none()
        return _kept(row) if row else None

    async def kept(self, key: Key, *, show_gone: bool = False) -> Kept:
        """Raises NotFound."""
        kept = await self.find(key)
        if kept is None or (kept.deployment.is_gone and not show_gone):
            raise NotFound("deployment", str(key))
        return kept

    async def deployment(self, key: Key) -> Deployment:
        """Raises NotFound, also for one that is gone."""
        return (await self.kept(key)).deployment

    async def deployments(
        self, page: Page, terms: Sequence[filters.Term], *, by_time: bool = False
    ) -> tuple[Sequence[Kept], str]:
        """A page, and the token of the next one. terms: of state, model_id, alias and labels.

        Raises InvalidArgument for a state that is none.
        """
        table = tables.deployments
        statement = select(table).where(table.c.project == self.project)
        if not any(key == "state" for key, _ in terms):
            statement = statement.where(table.c.state != pb.DEPLOYMENT_STATE_DELETED)
        for key, value in terms:
            statement = statement.where(_holds(key, value))
        columns = [table.c.model_id, table.c.name]
        if by_time:
            columns = [table.c.create_time, *columns]
        statement = page.apply(statement, *columns, descending=by_time)
        rows = (await self.connection.execute(statement)).all()
        shown, token = page.cut(
            rows,
            key=lambda row: (
                (row.create_time, row.model_id, row.name) if by_time else (row.model_id, row.name)
            ),
        )
        return [_kept(row) for row in shown], token

    async def backed_by(self, key: Key) -> list[Key]:
        """The deployments whose backup this one is, or whose traffic it has."""
        return [
            other.key
            for other in await present(self.connection, tables.deployments.c.project == self.project)
            if other.key != key and key in {backup_of(other.spec, self.project), other.switched_to}
        ]

    async def backups_from(self, key: Key | None) -> dict[Key, Key]:
        """The backup of each deployment on the way from one through its backups."""
        backups: dict[Key, Key] = {}
        while key is not None and key not in backups:
            kept = await self.find(key)
            backup = backup_of(kept.deployment.spec, self.project) if kept else None
            if kept is None or kept.deployment.is_gone or backup is None:
                break
            backups[key] = backup
            key = backup
        return backups

    async def events(self, key: Key, after: int, limit: int, *, first: int = 1) -> list[pb.DeploymentEvent]:
        """Those after a sequence, in order. first: none before that."""
        sequence = tables.events.c.sequence
        rows = await self._rows(
            tables.events, key, sequence > after, sequence >= first, order=[sequence], limit=limit
        )
        return [pb.DeploymentEvent.FromString(row.event) for row in rows]

    async def oldest_event(self, key: Key, first: int) -> int:
        """The sequence of the first event that is kept, from `first` on; `first` if there is none."""
        table = tables.events
        statement = select(func.min(table.c.sequence)).where(of(table, key), table.c.sequence >= first)
        return (await self.connection.execute(statement)).scalar_one_or_none() or first

    async def lines(self, key: Key, after: int, limit: int) -> list[tuple[int, Line]]:
        """The log lines after a sequence, in order, each with its own."""
        sequence = tables.log_lines.c.sequence
        rows = await self._rows(tables.log_lines, key, sequence > after, order=[sequence], limit=limit)
        return [
            (row.sequence, Line(row.replica_id, row.revision, row.time, row.message, row.level))
            for row in rows
        ]

    async def line_bounds(self, key: Key) -> tuple[int, int]:
        """The sequences of the oldest line kept and of the last; (1, 0) if there is none."""
        table = tables.log_lines
        bounds = [select(end(table.c.sequence)).where(of(table, key)) for end in (func.min, func.max)]
        oldest, last = [(await self.connection.execute(bound)).scalar_one_or_none() for bound in bounds]
        return (1, 0) if oldest is None or last is None else (oldest, last)

    async def tail(self, key: Key, count: int, *, replica_id: str, revision: int, until: int) -> int:
        """The sequence before the last `count` lines of a replica or revision, up to `until`."""
        table = tables.log_lines
        statement = select(table.c.sequence).where(of(table, key), table.c.sequence <= until)
        if replica_id:
            statement = statement.where(table.c.replica_id == replica_id)
        if revision:
            statement = statement.where(table.c.revision == revision)
        statement = statement.order_by(table.c.sequence.desc()).offset(count - 1).limit(1)
        first: int | None = (await self.connection.execute(statement)).scalar_one_or_none()
        return first - 1 if first is not None else 0

    async def cursors(self, key: Key) -> Mapping[str, str]:
        """How far each replica's log has been read."""
        table = tables.log_cursors
        statement = select(table.c.replica_id, table.c.cursor).where(of(table, key))
        return {row.replica_id: row.cursor for row in await self.connection.execute(statement)}

    async def tallies_after(self, key: Key, time: datetime) -> list[Tally]:
        """The measurements after a moment, in order."""
        columns = tables.measurements.c
        rows = await self._rows(
            tables.measurements, key, columns.time > time, order=[columns.time, columns.revision]
        )
        return [RECORDS.load(Tally, row.record) for row in rows]

    async def samples(self, key: Key, since: datetime) -> list[Sample]:
        """What was reported of the time since a moment, in the order in which it came."""
        columns = tables.samples.c
        rows = await self._rows(tables.samples, key, columns.time >= since, order=[columns.sequence])
        return [_sample(row) for row in rows]

    async def samples_after(self, key: Key, sequence: int) -> list[Sample]:
        """What was reported after a report, in the order in which it came."""
        columns = tables.samples.c
        rows = await self._rows(tables.samples, key, columns.sequence > sequence, order=[columns.sequence])
        return [_sample(row) for row in rows]

    async def last_sample(self, key: Key) -> int:
        """The sequence of the last report; 0 before the first."""
        table = tables.samples
        statement = select(func.max(table.c.sequence)).where(of(table, key))
        return (await self.connection.execute(statement)).scalar_one_or_none() or 0

    async def _rows(
        self,
        table: Table,
        key: Key,
        *conditions: ColumnElement[bool],
        order: Sequence[ColumnElement[Any]],
        limit: int | None = None,
    ) -> Sequence[Row[Any]]:
        """Those of a deployment that meet the conditions."""
        statement = select(table).where(of(table, key), *conditions).order_by(*order).limit(limit)
        return (await self.connection.execute(statement)).all()


async def present(connection: AsyncConnection, *conditions: ColumnElement[bool]) -> list[Deployment]:
    """Those that meet the conditions and are not gone, of all projects."""
    table = tables.deployments
    statement = select(table).where(table.c.state != pb.DEPLOYMENT_STATE_DELETED, *conditions)
    return [_kept(row).deployment for row in await connection.execute(statement)]


def of(table: Any, key: Key) -> ColumnElement[bool]:
    """That a row belongs to a deployment."""
    return and_(table.c.project == key.project, table.c.model_id == key.model_id, table.c.name == key.name)


def same(one: Table, other: Table) -> ColumnElement[bool]:
    """That rows of two tables belong to one deployment."""
    return and_(*(one.c[name] == other.c[name] for name in ("project", "model_id", "name")))


def _holds(key: str, value: str) -> ColumnElement[bool]:
    table, labels = tables.deployments, tables.labels
    if key == "state":
        items = pb.DeploymentState.items()
        states = {name.removeprefix("DEPLOYMENT_STATE_"): number for name, number in items if number}
        if value not in states:
            raise InvalidArgument("filter", f"state={value} is not one of {', '.join(states)}")
        return table.c.state == states[value]
    if key in {"model_id", "alias"}:
        is_equal: ColumnElement[bool] = table.c[key] == value
        return is_equal
    return (
        select(labels.c.label)
        .where(same(labels, table), labels.c.label == key.removeprefix(LABELS), labels.c.value == value)
        .exists()
    )


def _kept(row: Row[Any]) -> Kept:
    return Kept(RECORDS.load(Deployment, row.record), row.last_sequence, row.first_sequence)


def _sample(row: Row[Any]) -> Sample:
    return Sample(**{name: row._mapping[name] for name in Sample.__dataclass_fields__})
