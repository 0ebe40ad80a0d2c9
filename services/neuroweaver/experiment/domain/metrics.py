"""Kinds of metrics: what each reads of a unit's events, and the kind of estimate that is made of it.

A new kind takes a message in the `definition` of ExperimentMetric, a row in `_KINDS`, and a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from neuroweaver.statistics.arm import Kind
from neuroweaver.v1 import experiment_pb2 as pb

SUM: Final = pb.UNIT_AGGREGATION_SUM
COUNT: Final = pb.UNIT_AGGREGATION_COUNT
MEAN: Final = pb.UNIT_AGGREGATION_MEAN


@dataclass(frozen=True)
class Outcome:
    """Events of a name made one value of a unit. threshold: 1 if any event reaches it, else 0; None: the
    aggregated values.
    """

    event_name: str
    aggregation: pb.UnitAggregation.ValueType
    threshold: float | None = None


class Estimate(Enum):
    ARMS = "arms"
    """A value of each unit, or a ratio of two."""
    QUANTILE = "quantile"
    """Of events, or of units' means."""
    WIN_RATE = "win rate"
    """Of side-by-side judgements; no event of a single unit is read."""


@dataclass(frozen=True)
class MetricKind:
    """outcomes: from the definition, a column each. arms: what is made of these columns."""

    estimate: Estimate
    outcomes: Callable[[Any], Sequence[Outcome]]
    arms: Kind = Kind.MEAN


_KINDS: Final = {
    "mean": MetricKind(Estimate.ARMS, lambda mean: [_of_source(mean.source)]),
    "count": MetricKind(Estimate.ARMS, lambda count: [Outcome(count.event_name, COUNT)]),
    "proportion": MetricKind(Estimate.ARMS, lambda proportion: [_share(proportion)], Kind.PROPORTION),
    "ratio": MetricKind(
        Estimate.ARMS, lambda ratio: [_of_source(ratio.numerator), _of_source(ratio.denominator)], Kind.RATIO
    ),
    "quantile": MetricKind(Estimate.QUANTILE, lambda quantile: [Outcome(quantile.event_name, MEAN)]),
    "pairwise": MetricKind(Estimate.WIN_RATE, lambda _pairwise: []),
}


def kind_of(metric: pb.ExperimentMetric) -> MetricKind:
    return _KINDS[metric.WhichOneof("definition") or ""]


def estimate_of(metric: pb.ExperimentMetric) -> Estimate:
    return kind_of(metric).estimate


def definition_of(metric: pb.ExperimentMetric) -> Any:
    """The message of its kind."""
    return getattr(metric, metric.WhichOneof("definition") or "")


def outcomes_of(metric: pb.ExperimentMetric) -> Sequence[Outcome]:
    """What it reads of a unit's events."""
    return kind_of(metric).outcomes(definition_of(metric))


def is_never_negative(metric: pb.ExperimentMetric) -> bool:
    """Whether no unit's value can be below 0, whatever its events hold."""
    return all(outcome.aggregation == COUNT for outcome in outcomes_of(metric))


def fill_defaults(metric: pb.ExperimentMetric) -> None:
    """In place: how the events of each source are aggregated."""
    for _, source in definition_of(metric).ListFields():
        if isinstance(source, pb.EventSource):
            source.aggregation = source.aggregation or SUM


def _of_source(source: pb.EventSource) -> Outcome:
    return Outcome(source.event_name, source.aggregation or SUM)


def _share(proportion: pb.ProportionMetric) -> Outcome:
    """Without a threshold any event reaches it."""
    threshold = proportion.threshold if proportion.HasField("threshold") else -math.inf
    return Outcome(proportion.event_name, COUNT, threshold)
