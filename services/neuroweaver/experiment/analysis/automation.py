"""What an experiment's own data bring about: a stop, a ramp-up that is held, weights that follow outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

import numpy as np

from neuroweaver.experiment.analysis.guardrails import reason_of
from neuroweaver.experiment.analysis.report import Report
from neuroweaver.experiment.analysis.soundness import faults, unsound
from neuroweaver.experiment.analysis.study import Study
from neuroweaver.experiment.domain.model import RUNNING, Experiment
from neuroweaver.experiment.domain.specification import length
from neuroweaver.statistics import thompson
from neuroweaver.v1 import experiment_pb2 as pb

# Smaller changes would open phase after phase and move next to nobody.
_LEAST_CHANGE: Final = 0.01
REASON: Final = "Thompson sampling"


def guarded(experiment: Experiment, now: datetime, report: Report) -> Experiment:
    """Stopped if a guardrail is shown to be breached and the experiment is to stop for it."""
    if experiment.state != RUNNING or not report.breaches or not experiment.spec.stop_on_guardrail_breach:
        return experiment
    return experiment.stopped(now, pb.STOP_CAUSE_GUARDRAIL, f"{reason_of(report.breaches[0])}.")


def reweighed(experiment: Experiment, now: datetime, report: Report) -> Experiment:
    """With the weights that follow from the outcomes, where they follow and their time has come."""
    phase, spec = experiment.phase, experiment.spec.thompson
    if not experiment.spec.HasField("thompson") or experiment.state != RUNNING or phase is None:
        return experiment
    if now - phase.start_time < length(spec.update_interval):
        return experiment
    weights = following(report.study)
    if weights is None or max(abs(weights[each] - phase.weights[each]) for each in weights) < _LEAST_CHANGE:
        return experiment
    return experiment.reweighted(weights, now, REASON)


def following(study: Study) -> Mapping[str, float] | None:
    """The weights that the outcomes ask for; None while too little is known of a variant."""
    spec = study.experiment.spec.thompson
    metric = study.experiment.metric(spec.metric_id)
    is_sound = metric is not None and metric.metric_id not in unsound(study, faults(study))
    beliefs = _beliefs(study, metric) if metric and is_sound else None
    if (
        metric is None
        or beliefs is None
        or any(each.units < thompson.LEAST_UNITS for each in beliefs.values())
    ):
        return None
    higher = metric.goal == pb.METRIC_GOAL_INCREASE
    weights = thompson.weights(list(beliefs.values()), spec.min_weight, higher_is_better=higher)
    return dict(zip(beliefs, weights, strict=True))


def _beliefs(study: Study, metric: pb.ExperimentMetric) -> Mapping[str, thompson.Belief] | None:
    """Each variant's value: that of its phases, averaged with the same weights for all variants, those of
    the phases' units. The overall values would mix the variants with the times at which they had units.
    """
    by_phase = [each.pooled_arms(metric) for each in study.by_phase]
    whole = [arms for arms in by_phase if all(arms.values())]
    if not whole or not study.events(metric.metric_id):
        return None
    complete = [{variant: arm for variant, arm in arms.items() if arm} for arms in whole]
    units = np.array([sum(arm.units for arm in arms.values()) for arms in complete], dtype=float)
    shares = units / units.sum()
    result = {}
    for variant in study.variants:
        arms = [each[variant] for each in complete]
        value = float(shares @ np.array([arm.value for arm in arms]))
        variance = float(shares**2 @ np.array([arm.variance / arm.units for arm in arms]))
        result[variant] = thompson.Belief(sum(arm.units for arm in arms), value, float(np.sqrt(variance)))
    return result
