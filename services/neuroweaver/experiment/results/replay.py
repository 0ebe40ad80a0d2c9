"""Results as they were at a moment, recomputed from the raw events."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from neuroweaver.experiment.analysis.report import report
from neuroweaver.experiment.domain.model import CREATED, Experiment
from neuroweaver.experiment.intake import recompute
from neuroweaver.experiment.storage.store import Store
from neuroweaver.v1 import experiment_pb2 as pb


async def replayed(
    store: Store, project: str, request: pb.AnalyzeExperimentRequest, as_of: datetime
) -> pb.ExperimentResults:
    """Raises NotFound, OutOfRange if there was no such phase yet, FailedPrecondition without raw events."""
    clock = request.as_of_clock or pb.REPLAY_CLOCK_RECEIVED
    async with store.read(project) as experiments:
        experiment = await experiments.experiment(request.test_id)
        changes = await experiments.result_events(request.test_id, kind="state_changed", until=as_of)
        snapshot = await recompute.as_of(experiments.connection, project, request.test_id, as_of, clock)
    then = as_it_was(experiment, as_of, [change.state_changed.to_state for change in changes])
    results = (await asyncio.to_thread(report, then, snapshot, now=as_of, phase=request.phase)).results
    results.compute_time.FromDatetime(store.clock())
    return results


def as_it_was(
    experiment: Experiment, as_of: datetime, states: Sequence[pb.ExperimentState.ValueType]
) -> Experiment:
    """states: those that it had gone to by then."""
    phases = [phase for phase in experiment.phases if phase.start_time <= as_of]
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
