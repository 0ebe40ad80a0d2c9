"""What happens to experiments by itself: ramps rise, ends come, harm stops, decisions are carried out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.experiment.analysis import automation
from neuroweaver.experiment.analysis.guardrails import Breach
from neuroweaver.experiment.analysis.report import Report
from neuroweaver.experiment.control import gauges
from neuroweaver.experiment.domain import messages
from neuroweaver.experiment.domain.model import CONCLUDING, RUNNING, Experiment
from neuroweaver.experiment.results import history
from neuroweaver.experiment.results.results import Desk
from neuroweaver.experiment.storage.store import Origin, Store
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.mesh.wire.errors import Error
from neuroweaver.v1 import experiment_pb2 as pb

_LOG: Final = logging.getLogger("neuroweaver.experiment")

PERIOD_S: Final = 1.0
MAX_BACKOFF_S: Final = 300.0
SUPERVISION_S: Final = 10.0
"""Between two looks at the data of an experiment."""
KEEP_EVERY: Final = timedelta(minutes=1)
"""Between two results that are kept while nobody watches."""

SYSTEM: Final = "system"


class Settler(Protocol):
    async def settle(self, project: str, test_id: str) -> Experiment:
        """One attempt to make a pending conclusion true in the Registry."""


class Director:
    """Any number of processes may run one over one database: each step is taken by whoever comes first."""

    def __init__(self, store: Store, settler: Settler, desk: Desk | None = None) -> None:
        """desk: None: the data of the experiments bring nothing about."""
        self._store = store
        self._settler = settler
        self._desk = desk
        self._next_attempt: dict[tuple[str, str], float] = {}
        self._next_supervision: dict[tuple[str, str], float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except (SQLAlchemyError, Error) as error:  # the database may be back in a second
                _LOG.warning("experiments not looked at", extra={"cause": type(error).__name__})
            await asyncio.sleep(PERIOD_S)

    async def look(self) -> None:
        """At every experiment that goes on by itself."""
        keys = await self._store.to_look_at()
        await self._keep_last(set(keys))
        for project, test_id in keys:
            try:
                await self._look_at(project, test_id)
            except (SQLAlchemyError, Error):
                raise
            except Exception:  # noqa: BLE001  # one experiment's fault must not hold up all others
                _LOG.exception("experiment not looked at", extra={"test_id": test_id})

    async def _look_at(self, project: str, test_id: str) -> None:
        async with self._store.read(project) as experiments:
            found = await experiments.experiment(test_id)
        if found.state == CONCLUDING:
            await self._settle(project, test_id)
        elif found.state == RUNNING:
            await self._tend(project, found)

    async def _tend(self, project: str, found: Experiment) -> None:
        """A running experiment."""
        if _ended(found, self._store.clock()) is not found:
            await self._advance(project, found.test_id, _ended)
            return
        report = await self._supervised(project, found)
        if found.ramped(self._store.clock()) is found:
            return
        if self._desk is not None and report is None:
            report = await self._desk.report(project, found.test_id)
        # A ramp-up that is held goes on by itself once what held it is gone.
        if report is None or not report.is_held:
            await self._advance(project, found.test_id, Experiment.ramped)

    async def _supervised(self, project: str, found: Experiment) -> Report | None:
        """What the data say, once in a while, after what follows from it was done."""
        key = (project, found.test_id)
        if self._desk is None or time.monotonic() < self._next_supervision.get(key, 0.0):
            return None
        report = await self._desk.keep(*key, KEEP_EVERY)
        self._next_supervision[key] = time.monotonic() + SUPERVISION_S
        gauges.show(found, report.results.verdict)
        await self._tell_breaches(project, found, report.breaches)
        for rule in (automation.guarded, automation.reweighed):
            step = _by(rule, report)
            if step(found, self._store.clock()) is not found:
                await self._advance(project, found.test_id, step)
                break
        return report

    async def _tell_breaches(self, project: str, found: Experiment, breaches: Sequence[Breach]) -> None:
        """Watches, of those that they have not heard of."""
        if not breaches:
            return

        async def tell(experiments: Writer) -> None:
            told = await history.breaches(experiments, found.test_id)
            for breach in breaches:
                if (breach.guardrail.metric_id, breach.treatment) not in told:
                    experiment = await experiments.experiment(found.test_id)
                    event = pb.GuardrailBreached(
                        guardrail=breach.guardrail,
                        variant_id=breach.treatment,
                        interval=breach.interval,
                        is_stopping=experiment.state == RUNNING and experiment.spec.stop_on_guardrail_breach,
                    )
                    told_of = pb.ResultsEvent(guardrail_breached=event)
                    await experiments.tell(experiment, history.BREACH, told_of)

        await self._store.transact(Origin(project, SYSTEM), tell)

    async def _keep_last(self, keys: set[tuple[str, str]]) -> None:
        """The results of experiments that ran at the last look and do no more."""
        for key in self._next_supervision.keys() - keys:
            if self._desk is not None:
                gauges.hide((await self._desk.keep(*key)).study.experiment)
            del self._next_supervision[key]

    async def _advance(
        self, project: str, test_id: str, rule: Callable[[Experiment, datetime], Experiment]
    ) -> None:
        async def step(experiments: Writer) -> None:
            before = await experiments.experiment(test_id)
            after = rule(before, experiments.now) if before.state == RUNNING else before
            if after is not before:
                await experiments.save(before, after, messages.events_of(before, after, SYSTEM))

        await self._store.transact(Origin(project, SYSTEM), step)

    async def _settle(self, project: str, test_id: str) -> None:
        """Tries again with back-off; after a restart at once."""
        key = (project, test_id)
        if time.monotonic() < self._next_attempt.get(key, 0.0):
            return
        after = await self._settler.settle(project, test_id)
        pending = after.conclusion
        if after.state == CONCLUDING and pending and pending.state == pb.CONCLUSION_STATE_PENDING:
            delay_s = min(2.0 ** min(pending.attempts, 16), MAX_BACKOFF_S)
            self._next_attempt[key] = time.monotonic() + delay_s
        else:
            self._next_attempt.pop(key, None)


def _by(
    rule: Callable[[Experiment, Report, datetime], Experiment], report: Report
) -> Callable[[Experiment, datetime], Experiment]:
    return lambda experiment, now: rule(experiment, report, now)


def _ended(experiment: Experiment, now: datetime) -> Experiment:
    if experiment.end_time and experiment.end_time <= now:
        return experiment.stopped(now, pb.STOP_CAUSE_END_TIME, "its end_time has come")
    return experiment
