"""Results as they were at a moment, recomputed from the raw events."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from neuroweaver.experiment.analysis.report import report
from neuroweaver.experiment.domain.model import CREATED, Experiment
from neuroweaver.experiment.domain.snapshot import Quality, Rejection
from neuroweaver.experiment.intake import recompute, snapshots
from neuroweaver.experiment.intake.readings import Plan
from neuroweaver.experiment.results import history
from neuroweaver.experiment.storage.store import Store
from neuroweaver.v1 import experiment_pb2 as pb

_STORED: Final = frozenset({"EXPOSURES_REJECTED", "RAMP_HELD"})
"""Notices of what raw events do not tell."""


async def replayed(
    store: Store, project: str, request: pb.AnalyzeExperimentRequest, as_of: datetime
) -> pb.ExperimentResults:
    """What was rejected, how far a ramp-up was, and whether the test of the split had fired, raw events do
    not tell: it is taken from the results that were stored by then.

    Raises NotFound, OutOfRange if there was no such phase yet, FailedPrecondition without raw events.
    """
    test_id, clock = request.test_id, request.as_of_clock or pb.REPLAY_CLOCK_RECEIVED
    async with store.read(project) as experiments:
        experiment = await experiments.experiment(test_id)
        changes = await experiments.result_events(test_id, kind="state_changed", until=as_of)
        snapshot = await recompute.as_of(experiments.connection, project, test_id, as_of, clock)
        newest = await snapshots.read(experiments.connection, project, Plan(experiment.spec), test_id)
        split = await history.split(experiments, test_id, as_of)
        stored = await history.latest(experiments, test_id, until=as_of)
    then = as_it_was(experiment, as_of, [change.state_changed.to_state for change in changes])
    past = stored[0].results if stored else None
    if past is not None:
        snapshot = replace(snapshot, quality=_with_rejected(snapshot.quality, past.events))
    computed = await asyncio.to_thread(report, then, snapshot, now=as_of, phase=request.phase, previous=split)
    results = computed.results
    if past is not None:
        results.notices.extend(each for each in past.notices if each.reason in _STORED)
    has_rejected = bool(newest.ledger.duplicates or newest.ledger.rejections)
    if then.phases and (has_rejected or experiment.spec.ramp):
        results.notices.append(_replay_notice(past))
    results.compute_time.FromDatetime(store.clock())
    return results


def _with_rejected(quality: Quality, stored: pb.EventQuality) -> Quality:
    rejected = tuple(
        Rejection(each.reason, each.count, tuple(each.names), tuple(each.event_ids))
        for each in stored.rejected
    )
    return replace(quality, duplicates=stored.duplicates, rejected=rejected)


def _replay_notice(past: pb.ExperimentResults | None) -> pb.ExperimentNotice:
    what = "Duplicates, rejected events, rejected exposures and the state of a ramp-up"
    if past is None:
        message = f"{what} are not known of this moment, and lack here: no results had been stored by then."
    else:
        message = (
            f"{what} are those of {past.compute_time.ToJsonString()}, when results were last stored by then:"
            " raw events do not tell them."
        )
    return pb.ExperimentNotice(reason="REPLAY_OF_STORED", message=message)


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
