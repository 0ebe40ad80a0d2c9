"""Metrics of running experiments, for alerts."""

from __future__ import annotations

from typing import Final

from prometheus_client import Gauge

from neuroweaver.experiment.domain.model import Experiment
from neuroweaver.v1 import experiment_pb2 as pb

_SIGNIFICANT: Final = Gauge(
    "neuroweaver_experiment_significant",
    "Whether the data of a running experiment decide: 1 if its verdict is to ship or to keep, else 0.",
    ("project", "experiment", "model_id"),
)
_DECIDED: Final = (pb.DECISION_SHIP, pb.DECISION_KEEP)


def show(experiment: Experiment, verdict: pb.ExperimentVerdict) -> None:
    """One series for each model that the variants serve; one without a model if they serve none."""
    for model_id in _models(experiment):
        series = _SIGNIFICANT.labels(experiment.project, experiment.test_id, model_id)
        series.set(verdict.decision in _DECIDED)


def hide(experiment: Experiment) -> None:
    """Removes the series of an experiment that no longer runs."""
    for model_id in _models(experiment):
        _SIGNIFICANT.remove(experiment.project, experiment.test_id, model_id)


def _models(experiment: Experiment) -> list[str]:
    targets = (each.target.model_id for each in experiment.spec.variants if each.HasField("target"))
    return sorted(set(targets)) or [""]
