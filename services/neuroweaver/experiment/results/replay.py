"""Results as they were at a moment, made anew from the raw events."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import select

from neuroweaver.experiment.analysis.report import report
from neuroweaver.experiment.domain.model import CREATED, Experiment
from neuroweaver.experiment.intake import recompute
from neuroweaver.experiment.storage import tables
from neuroweaver.experiment.storage.reader import Reader
from neuroweaver.experiment.storage.store import Store
from neuroweaver.v1 import experiment_pb2 as pb


async def replayed(
    store: Store, project: str, request: pb.AnalyzeExperimentRequest, as_of: datetime
) -> pb.ExperimentResults:
    """Raises NotFound, OutOfRange if there was no such phase yet, FailedPrecondition without raw events."""
    clock = request.as_of_clock or pb.REPLAY_CLOCK_RECEIVED
    async with store.read(project) as experiments:
        known = await experiments.experiment(request.test_id)
        states = await _states(experiments, request.test_id, as_of)
        found = await recompute.as_of(experiments.connection, project, request.test_id, as_of, clock)
    then = as_it_was(known, as_of, states)
    made = await asyncio.to_thread(report, then, found, now=as_of, phase=request.phase)
    made.results.compute_time.FromDatetime(store.clock())
    return made.results


def as_it_was(
    experiment: Experiment, as_of: datetime, states: Sequence[pb.ExperimentState.ValueType]
) -> Experiment:
    """states: those that it had gone to by then."""
    phases = [each for each in experiment.phases if each.start_time <= as_of]
    if phases and (end := phases[-1].end_time) and end > as_of:
        phases[-1] = replace(phases[-1], end_time=None)
    return replace(
        experiment,
        state=states[-1] if states else CREATED,
        phases=tuple(phases),
        weights=phases[-1].weights if phases else experiment.weights,
        start_time=experiment.start_time if phases else None,
        ramp=None,  # at which step it was is not kept
    )


async def _states(
    experiments: Reader, test_id: str, as_of: datetime
) -> Sequence[pb.ExperimentState.ValueType]:
    table = tables.result_events
    statement = (
        select(table.c.event)
        .where(
            table.c.project == experiments.project,
            table.c.test_id == test_id,
            table.c.kind == "state_changed",
            table.c.time <= as_of,
        )
        .order_by(table.c.sequence)
    )
    rows = await experiments.connection.execute(statement)
    return [pb.ResultsEvent.FromString(row.event).state_changed.to_state for row in rows]
