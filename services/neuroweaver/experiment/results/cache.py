"""Results computed once, however many ask for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.analysis.report import Report, report
from neuroweaver.experiment.domain.model import SYSTEM, Experiment
from neuroweaver.experiment.domain.snapshot import Snapshot
from neuroweaver.experiment.intake import calibration, sketching, snapshots
from neuroweaver.experiment.intake.projection import Projections
from neuroweaver.experiment.results import history
from neuroweaver.experiment.storage import tables
from neuroweaver.experiment.storage.reader import Reader
from neuroweaver.experiment.storage.store import Store
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.v1 import experiment_pb2 as pb

PERIOD_S: Final = 1.0
"""Between two computations for one experiment."""
MOST_AGE_S: Final = 60.0
"""After which results are computed again though nothing came in: forecasts move with the clock."""

_ENTRIES: Final = 1000

Load = Callable[[AsyncConnection, str, str], Awaitable[Snapshot]]
"""The statistics of an experiment, by connection, project and test_id."""


@dataclass
class _Entry:
    """One experiment. revision: of what `report` was computed from. split: what the test of the split said
    last. under_way: the round that whoever asks now waits for. turn: one round at a time.
    """

    report: Report | None = None
    revision: object = None
    computed_at: float = float("-inf")
    split: pb.SampleRatioResult | None = None
    under_way: asyncio.Task[Report] | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_busy(self) -> bool:
        return self.under_way is not None or self.turn.locked()


class ResultsCache:
    """Its results hold all that was committed before they were asked for."""

    def __init__(
        self,
        store: Store,
        projections: Projections,
        *,
        load: Load = snapshots.load,
        period_s: float = PERIOD_S,
    ) -> None:
        self._store = store
        self._projections = projections
        self._load = load
        self._period_s = period_s
        self._entries: dict[tuple[str, str], _Entry] = {}

    async def current(self, project: str, test_id: str) -> pb.ExperimentResults:
        """As of now, over all phases; not to be changed. Raises NotFound."""
        return (await self.report(project, test_id)).results

    async def report(self, project: str, test_id: str) -> Report:
        """As of now, over all phases. Raises NotFound.

        At most one computation a period: those who ask meanwhile wait for the next one, together.
        """
        entry = self._entries.setdefault((project, test_id), _Entry())
        if entry.under_way is None:
            entry.under_way = asyncio.create_task(self._refreshed(entry, project, test_id))
        # Who asked first may go away; the others still wait.
        return await asyncio.shield(entry.under_way)

    async def phase(self, project: str, test_id: str, phase: int) -> pb.ExperimentResults:
        """Of one phase, as of now. Raises NotFound, OutOfRange."""
        whole = await self.report(project, test_id)
        experiment, snapshot = whole.study.experiment, whole.study.snapshot
        now = self._store.clock()
        split = whole.results.sample_ratio
        of_phase = await asyncio.to_thread(report, experiment, snapshot, now=now, phase=phase, previous=split)
        results = of_phase.results
        results.sequence = whole.results.sequence
        return results

    async def keep(self, project: str, test_id: str, least_age: timedelta = timedelta()) -> Report:
        """Stores the present results for watches and the history, if they moved. Raises NotFound.

        least_age: of the results stored last; while these are younger, nothing is.
        """
        report = await self.report(project, test_id)
        results = pb.ExperimentResults()
        results.CopyFrom(report.results)

        async def put(experiments: Writer) -> int:
            return await history.keep(experiments, results, least_age)

        async with self._store.read(project) as experiments:
            stored = await history.latest(experiments, test_id)
        if not stored or not history.is_same(stored[0].results, results):
            sequence = await self._store.transact(ChangeOrigin(project, SYSTEM), put)
            report.results.sequence = sequence or report.results.sequence
        return report

    async def _refreshed(self, entry: _Entry, project: str, test_id: str) -> Report:
        clock = asyncio.get_running_loop().time
        try:
            async with entry.turn:
                # Whoever asks from here on may know of more than is read now, and waits for the next round.
                entry.under_way = None
                rest_s = entry.computed_at + self._period_s - clock()
                if entry.report is not None and rest_s > 0:
                    async with self._store.read(project) as experiments:
                        _, revision = await _revision(experiments, test_id)
                    if revision == entry.revision:
                        return entry.report
                    await asyncio.sleep(rest_s)
                return await self._computed(entry, project, test_id)
        finally:
            self._trim()

    async def _computed(self, entry: _Entry, project: str, test_id: str) -> Report:
        started = asyncio.get_running_loop().time()
        async with self._store.read(project) as experiments:
            experiment, revision = await _revision(experiments, test_id)
            is_young = started - entry.computed_at < MOST_AGE_S
            if entry.report is not None and revision == entry.revision and is_young:
                return entry.report
            entry.computed_at = started
            snapshot = await self._load(experiments.connection, project, test_id)
            if entry.split is None:
                entry.split = await history.split(experiments, test_id)
        if snapshot.outdated:
            # Before anything follows from them.
            await calibration.reexamine(self._store, self._projections, experiment)
            async with self._store.read(project) as experiments:
                experiment, revision = await _revision(experiments, test_id)
                snapshot = await self._load(experiments.connection, project, test_id)
        snapshot = await sketching.completed(self._store, self._projections, experiment, snapshot)
        now = self._store.clock()
        computed = await asyncio.to_thread(report, experiment, snapshot, now=now, previous=entry.split)
        computed.results.sequence = experiment.last_sequence
        entry.report, entry.revision, entry.split = computed, revision, computed.results.sample_ratio
        return computed

    def _trim(self) -> None:
        """Drops what does not exist and, beyond a bound, what was computed longest ago."""
        idle = [key for key, entry in self._entries.items() if not entry.is_busy]
        idle.sort(key=lambda key: self._entries[key].computed_at)
        for index, key in enumerate(idle):
            if self._entries[key].report is None or index < len(idle) - _ENTRIES:
                del self._entries[key]


async def _revision(experiments: Reader, test_id: str) -> tuple[Experiment, object]:
    """The experiment, and what is another one once anything that results are made of has changed."""
    experiment = await experiments.experiment(test_id)
    table = tables.totals
    statement = select(table.c.last_batch, table.c.counts).where(
        tables.of_experiment(table, experiments.project, test_id)
    )
    row = (await experiments.connection.execute(statement)).one_or_none()
    return experiment, (experiment.etag, None if row is None else tuple(row))
