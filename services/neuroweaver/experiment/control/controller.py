"""Takes experiments further: ramps up, ends them, stops those that do harm, carries out decisions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.experiment.analysis import automation
from neuroweaver.experiment.analysis.report import Report
from neuroweaver.experiment.conclusion.conclusion import settle
from neuroweaver.experiment.conclusion.registry import Releases
from neuroweaver.experiment.control import gauges
from neuroweaver.experiment.domain.model import CONCLUDING, RUNNING, SYSTEM, Experiment
from neuroweaver.experiment.results import history
from neuroweaver.experiment.results.cache import ResultsCache
from neuroweaver.experiment.storage.store import Store
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.mesh.handlers.loop import Outages, repeat
from neuroweaver.mesh.wire.clock import brought_back
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.v1 import experiment_pb2 as pb

PERIOD_S: Final = 1.0
MAX_BACKOFF_S: Final = 300.0
SUPERVISION_S: Final = 10.0
"""Between two looks at the data of an experiment."""
KEEP_EVERY: Final = timedelta(minutes=1)
"""Between two results that are stored while nobody watches."""


class ExperimentController:
    """Any number of processes may run one over one database: each step is taken by whoever comes first."""

    def __init__(self, store: Store, releases: Releases, cache: ResultsCache) -> None:
        self._store = store
        self._releases = releases
        self._cache = cache
        self._next_attempt: dict[tuple[str, str], float] = {}
        self._next_supervision: dict[tuple[str, str], float] = {}
        self._outages = Outages("experiments")

    async def run(self) -> None:
        """Until cancelled."""
        await repeat("experiments", self.look, PERIOD_S)

    async def look(self) -> None:
        """At every experiment that is running or being concluded."""
        keys = await self._store.keys([RUNNING, CONCLUDING])
        await self._keep_last(set(keys))
        for project, test_id in keys:
            with self._outages.survived(SQLAlchemyError, project=project, test_id=test_id):
                await self._look_at(project, test_id)

    async def _look_at(self, project: str, test_id: str) -> None:
        experiment = await self._store.experiment(project, test_id)
        if experiment.state == CONCLUDING:
            await self._settle(project, test_id)
        elif experiment.state == RUNNING:
            await self._tend(experiment)

    async def _tend(self, experiment: Experiment) -> None:
        """A running experiment."""
        if await self._advance(experiment, brought_back) or await self._advance(experiment, _ended):
            return
        report = await self._supervised(experiment)
        if experiment.ramped(self._store.clock()) is experiment:
            return
        report = report or await self._cache.report(experiment.project, experiment.test_id)
        # A ramp-up that is held continues once what held it is gone.
        if not report.is_held:
            await self._advance(experiment, Experiment.ramped)

    async def _supervised(self, experiment: Experiment) -> Report | None:
        """What the data say, once in a while, after what follows from it was done."""
        key = experiment.project, experiment.test_id
        if time.monotonic() < self._next_supervision.get(key, 0.0):
            return None
        report = await self._cache.keep(*key, KEEP_EVERY)
        self._next_supervision[key] = time.monotonic() + SUPERVISION_S
        gauges.show(experiment, report.results.verdict)
        if report.breaches:
            await self._store.transact(
                ChangeOrigin(experiment.project, SYSTEM),
                lambda experiments: publish_breaches(experiments, experiment.test_id, report.breaches),
            )
        for rule in (automation.guarded, automation.reweighed):
            if await self._advance(experiment, partial(rule, report=report)):
                break
        return report

    async def _keep_last(self, keys: set[tuple[str, str]]) -> None:
        """The results of experiments that ran at the last look and do no more."""
        for key in self._next_supervision.keys() - keys:
            gauges.hide((await self._cache.keep(*key)).study.experiment)
            del self._next_supervision[key]

    async def _advance(
        self, experiment: Experiment, rule: Callable[[Experiment, datetime], Experiment]
    ) -> bool:
        """Whether the rule changed the experiment as it was read."""
        if rule(experiment, self._store.clock()) is experiment:
            return False

        async def step(experiments: Writer) -> None:
            before = await experiments.experiment(experiment.test_id)
            if before.state == RUNNING:
                await experiments.save(before, rule(before, experiments.now))

        await self._store.transact(ChangeOrigin(experiment.project, SYSTEM), step)
        return True

    async def _settle(self, project: str, test_id: str) -> None:
        """Tries again with back-off; after a restart at once."""
        key = (project, test_id)
        if time.monotonic() < self._next_attempt.get(key, 0.0):
            return
        after = await settle(self._store, self._releases, project, test_id)
        pending = after.conclusion
        if after.state == CONCLUDING and pending and pending.state == pb.CONCLUSION_STATE_PENDING:
            delay_s = min(2.0 ** min(pending.attempts, 16), MAX_BACKOFF_S)
            self._next_attempt[key] = time.monotonic() + delay_s
        else:
            self._next_attempt.pop(key, None)


async def publish_breaches(
    experiments: Writer, test_id: str, breaches: Sequence[pb.GuardrailBreached]
) -> None:
    """Tells watches of the breaches that they have not been told of."""
    published = await history.breaches(experiments, test_id)
    for breach in breaches:
        if (breach.guardrail.metric_id, breach.variant_id) not in published:
            experiment, event = (
                await experiments.experiment(test_id),
                pb.ResultsEvent(guardrail_breached=breach),
            )
            is_stopping = experiment.state == RUNNING and experiment.spec.stop_on_guardrail_breach
            event.guardrail_breached.is_stopping = is_stopping
            await experiments.publish(experiment, event)


def _ended(experiment: Experiment, now: datetime) -> Experiment:
    if experiment.end_time and experiment.end_time <= now:
        return experiment.stopped(now, pb.STOP_CAUSE_END_TIME, "its end_time has come")
    return experiment
