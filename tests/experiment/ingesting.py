"""An experiment in a database of its own, and events for it, without any server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select, update

from databases import prepare
from experiment.serving import spec
from neuroweaver.experiment.domain import specification
from neuroweaver.experiment.domain.model import Experiment
from neuroweaver.experiment.domain.snapshot import Snapshot
from neuroweaver.experiment.intake import calibration, recompute, sketching, snapshots
from neuroweaver.experiment.intake.events import batches_of
from neuroweaver.experiment.intake.ingestion import Outcome, take_in
from neuroweaver.experiment.intake.projection import Projections
from neuroweaver.experiment.storage import tables
from neuroweaver.experiment.storage.store import Store
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.wire.clock import Clock
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.v1 import experiment_pb2 as pb

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=10)
PROJECT = "p"


def at(hours: float) -> datetime:
    """So many hours after the start."""
    return START + timedelta(hours=hours)


def exposure(
    event_id: str, unit_id: str, variant: str, hours: float = 1, **fields: Any
) -> pb.ExperimentEvent:
    body = pb.Exposure(assigned_variant_id=variant, **fields)
    return _event(event_id, unit_id, hours, exposure=body)


def sample(
    event_id: str, unit_id: str, value: float, hours: float = 2, name: str = "score"
) -> pb.ExperimentEvent:
    return _event(event_id, unit_id, hours, metric=pb.MetricSample(name=name, value=value))


def judgement(event_id: str, prompt: str, first: Any, second: Any, **fields: Any) -> pb.ExperimentEvent:
    hours = fields.pop("hours", 2)
    pair = {"name": "better", "baseline_variant_id": "control", "candidate_variant_id": "tuned"}
    body = pb.PairwiseJudgement(baseline_first=first, candidate_first=second, **(pair | fields))
    return _event(event_id, prompt, hours, judgement=body)


def _event(event_id: str, unit_id: str, hours: float, **body: Any) -> pb.ExperimentEvent:
    event = pb.ExperimentEvent(event_id=event_id, unit_id=unit_id, **body)
    event.event_time.FromDatetime(at(hours))
    return event


@dataclass
class Intake:
    """One started experiment `t`. now: the server's clock."""

    database: Database
    store: Store
    projections: Projections = field(default_factory=Projections)
    now: datetime = NOW

    def reopen(self, clock: Clock) -> None:
        """As a process that begins anew."""
        self.store, self.projections = Store(self.database, clock=clock), Projections()

    async def take(self, *events: pb.ExperimentEvent) -> Outcome:
        return (await self.take_batches([events]))[0]

    async def take_batches(self, batches: Sequence[Sequence[pb.ExperimentEvent]]) -> list[Outcome]:
        """All in one transaction."""
        requests = [pb.RecordEventsRequest(test_id="t", rows=pb.EventRows(events=each)) for each in batches]
        read = [batch for request in requests for batch in batches_of(request)]
        return await take_in(
            self.database, self.projections, PROJECT, read, lambda: self.now, self.store.topics
        )

    async def experiment(self) -> Experiment:
        async with self.store.read(PROJECT) as experiments:
            return await experiments.experiment("t")

    async def snapshot(self) -> Snapshot:
        async with self.store.read(PROJECT) as experiments:
            experiment = await experiments.experiment("t")
            found = await snapshots.load(experiments.connection, PROJECT, "t")
        return await sketching.completed(self.store, self.projections, experiment, found)

    async def recomputed(self, **options: Any) -> recompute.Recomputed:
        async with self.projections.hold(PROJECT, ["t"]):
            found = await self.database.transact(
                lambda connection: recompute.recompute(connection, PROJECT, "t", self.now, **options)
            )
            if options.get("replace_stored"):
                self.projections.forget(PROJECT, "t")
        return found

    async def as_of(
        self, moment: datetime, clock: pb.ReplayClock.ValueType = pb.REPLAY_CLOCK_RECEIVED
    ) -> Snapshot:
        async with self.store.read(PROJECT) as experiments:
            return await recompute.as_of(experiments.connection, PROJECT, "t", moment, clock)

    async def reexamined(self) -> int:
        """Of how many metrics the caps are taken again."""
        experiment = await self.experiment()
        store = Store(self.database, clock=lambda: self.now)
        return await calibration.reexamine(store, self.projections, experiment)

    async def make_carried(self) -> None:
        """As the migration leaves what an earlier version counted."""
        async with self.database.write() as connection:
            counts = json.loads((await connection.scalar(select(tables.totals.c.counts))) or "")
            counts |= {"uses": [], "exams": [], "carried": True}
            for unknown in ("timings", "timed_values", "between", "rejected_exposures"):
                del counts[unknown]
            await connection.execute(update(tables.totals).values(counts=json.dumps(counts)))
            await connection.execute(update(tables.cells).values(cuts=None))

    async def change(self, change: Any) -> None:
        """change: of an experiment into what is saved."""

        async def work(experiments: Writer) -> None:
            before = await experiments.experiment("t")
            await experiments.save(before, change(before))

        await self.store.transact(ChangeOrigin(PROJECT, "a"), work)

    async def add(self, made: pb.ExperimentSpec, test_id: str = "t") -> None:
        """Started at START."""
        complete = specification.completed(made, START)

        async def work(experiments: Writer) -> None:
            created = Experiment(
                project=PROJECT,
                test_id=test_id,
                spec=complete,
                weights={each.variant_id: each.weight for each in complete.variants},
                salt="salt",
                pinned={},
                baseline={},
                created_by="a",
                create_time=START,
                update_time=START,
            )
            added = await experiments.add(created)
            started = replace(added.started(START, {}, {}), update_time=START)
            await experiments.save(added, started)

        await self.store.transact(ChangeOrigin(PROJECT, "a"), work)


@asynccontextmanager
async def intake(database_url: str, made: pb.ExperimentSpec | None = None) -> AsyncIterator[Intake]:
    await prepare(database_url, "neuroweaver.experiment")
    database = Database(database_url, schema="experiment")
    try:
        opened = Intake(database, Store(database, clock=lambda: START))
        await opened.add(made or spec())
        yield opened
    finally:
        await database.close()
