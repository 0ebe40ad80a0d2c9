"""What a transaction reads of a project's experiments: model objects, never rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, exists, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.domain import messages
from neuroweaver.experiment.domain.model import Experiment
from neuroweaver.experiment.storage import tables
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.wire.errors import InvalidArgument, NotFound
from neuroweaver.v1 import experiment_pb2 as pb

LABEL: Final = "labels."

RESULTS: Final = "results"
"""The kind of an event that a later one of its kind makes superfluous for a watch."""


class Reader:
    """What one transaction sees of a project."""

    def __init__(self, connection: AsyncConnection, project: str) -> None:
        self.connection = connection
        self.project = project

    async def experiment(self, test_id: str) -> Experiment:
        """Raises NotFound."""
        table = tables.experiments
        statement = select(table.c.record, table.c.hidden).where(
            tables.of_experiment(table, self.project, test_id)
        )
        row = (await self.connection.execute(statement)).one_or_none()
        if row is None:
            raise NotFound("experiment", test_id)
        return messages.load(row.record, row.hidden)

    async def has(self, test_id: str) -> bool:
        table = tables.experiments
        statement = select(table.c.test_id).where(tables.of_experiment(table, self.project, test_id))
        return (await self.connection.execute(statement)).first() is not None

    async def experiments(
        self, page: Page, terms: Sequence[tuple[str, str]] = (), *, order_by: str = "create_time desc"
    ) -> tuple[list[Experiment], str]:
        """A page by time of creation. terms: of `state`, `model_id`, `layer_id` and labels.

        Raises InvalidArgument for a state that is none.
        """
        table = tables.experiments
        statement = select(table).where(table.c.project == self.project)
        for name, value in terms:
            statement = _narrowed(statement, name, value)
        columns = [table.c.create_time, table.c.test_id]
        asked = page.apply(statement, *columns, descending=order_by != "create_time")
        rows = (await self.connection.execute(asked)).all()
        shown, token = page.cut(rows, key=lambda row: (row.create_time, row.test_id))
        return [messages.load(row.record, row.hidden) for row in shown], token

    async def layer(self, layer_id: str) -> list[Experiment]:
        """The experiments that hold buckets of a layer."""
        table = tables.experiments
        statement = (
            select(table)
            .where(table.c.project == self.project, table.c.layer_id == layer_id)
            .order_by(table.c.test_id)
        )
        return [messages.load(row.record, row.hidden) for row in await self.connection.execute(statement)]

    async def layers(self, page: Page) -> tuple[list[str], str]:
        """A page of layers, by id, and the token of the next one."""
        table = tables.layers
        statement = select(table.c.layer_id).where(table.c.project == self.project)
        rows = (await self.connection.execute(page.apply(statement, table.c.layer_id))).all()
        shown, token = page.cut(rows, key=lambda row: (row.layer_id,))
        return [row.layer_id for row in shown], token

    async def config_sequence(self) -> int:
        """Of the last change of a configuration; 0 before the first."""
        table = tables.projects
        statement = select(table.c.config_sequence).where(table.c.project == self.project)
        return (await self.connection.execute(statement)).scalar_one_or_none() or 0

    async def configs(self, after: int, test_ids: Sequence[str] = ()) -> list[pb.AssignmentEvent]:
        """The present configurations that changed after a sequence, in that order, each under its own."""
        table = tables.configs
        statement = select(table).where(table.c.project == self.project, table.c.sequence > after)
        if test_ids:
            statement = statement.where(table.c.test_id.in_(test_ids))
        rows = await self.connection.execute(statement.order_by(table.c.sequence))
        return [
            pb.AssignmentEvent(
                sequence=row.sequence, time=row.time, config=pb.AssignmentConfig.FromString(row.config)
            )
            for row in rows
        ]

    async def result_events(
        self,
        test_id: str,
        *,
        after: int = 0,
        kind: str = "",
        until: datetime | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[pb.ResultsEvent]:
        """The events kept after a sequence, in order. kind: the field that is set; empty for all."""
        table = tables.result_events
        statement = select(table.c.event).where(
            tables.of_experiment(table, self.project, test_id), table.c.sequence > after
        )
        if kind:
            statement = statement.where(table.c.kind == kind)
        if until is not None:
            statement = statement.where(table.c.time <= until)
        order = table.c.sequence.desc() if newest_first else table.c.sequence
        rows = await self.connection.execute(statement.order_by(order).limit(limit))
        return [pb.ResultsEvent.FromString(row.event) for row in rows]

    async def first_result_event(self, test_id: str) -> int | None:
        """The sequence of the oldest event kept."""
        table = tables.result_events
        statement = select(func.min(table.c.sequence)).where(
            tables.of_experiment(table, self.project, test_id)
        )
        oldest: int | None = (await self.connection.execute(statement)).scalar_one_or_none()
        return oldest

    async def results(self, test_id: str, page: Page) -> tuple[list[pb.ExperimentResults], str]:
        """A page of the results kept, oldest first, and the token of the next one."""
        table = tables.result_events
        statement = select(table.c.sequence, table.c.event).where(
            tables.of_experiment(table, self.project, test_id), table.c.kind == RESULTS
        )
        rows = (await self.connection.execute(page.apply(statement, table.c.sequence))).all()
        shown, token = page.cut(rows, key=lambda row: (row.sequence,))
        return [pb.ResultsEvent.FromString(row.event).results for row in shown], token


def _narrowed(statement: Select[Any], name: str, value: str) -> Select[Any]:
    table, facets = tables.experiments, tables.facets
    if name == "state":
        if f"EXPERIMENT_STATE_{value}" not in pb.ExperimentState.keys() or value == "UNSPECIFIED":  # noqa: SIM118
            states = [key.removeprefix("EXPERIMENT_STATE_") for key in pb.ExperimentState.keys()[1:]]
            raise InvalidArgument("filter", f"names an unknown state; the states are {', '.join(states)}")
        return statement.where(table.c.state == pb.ExperimentState.Value(f"EXPERIMENT_STATE_{value}"))
    return statement.where(
        exists().where(
            facets.c.project == table.c.project,
            facets.c.test_id == table.c.test_id,
            facets.c.name == name,
            facets.c.value == value,
        )
    )
