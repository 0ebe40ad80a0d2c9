from __future__ import annotations

import math

import pytest

from neuroweaver.experiment.domain import metrics
from neuroweaver.experiment.domain.metrics import COUNT, MEAN, SUM, Estimate, Outcome
from neuroweaver.statistics.arm import Kind
from neuroweaver.v1 import experiment_pb2 as pb

ANY = -math.inf
CLICKS = pb.EventSource(event_name="clicks", aggregation=pb.UNIT_AGGREGATION_MAX)
VISITS = pb.EventSource(event_name="visits")
READ = {
    "mean": (pb.MeanMetric(source=CLICKS), [Outcome("clicks", pb.UNIT_AGGREGATION_MAX)]),
    "count": (pb.CountMetric(event_name="clicks"), [Outcome("clicks", COUNT)]),
    "proportion": (pb.ProportionMetric(event_name="clicks"), [Outcome("clicks", COUNT, ANY)]),
    "ratio": (
        pb.RatioMetric(numerator=VISITS, denominator=CLICKS),
        [Outcome("visits", SUM), Outcome("clicks", pb.UNIT_AGGREGATION_MAX)],
    ),
    "quantile": (pb.QuantileMetric(event_name="clicks", quantile=0.5), [Outcome("clicks", MEAN)]),
    "pairwise": (pb.PairwiseMetric(event_name="clicks"), []),
}
DEFINITIONS = pb.ExperimentMetric.DESCRIPTOR.oneofs_by_name["definition"].fields


@pytest.mark.parametrize("name", [field.name for field in DEFINITIONS])
def test_every_kind_of_metric_says_what_it_reads_and_estimates(name):
    definition, outcomes = READ[name]
    metric = pb.ExperimentMetric(**{name: definition})

    assert metrics.definition_of(metric) == definition
    assert list(metrics.outcomes_of(metric)) == outcomes
    kind = metrics.kind_of(metric)
    assert kind.estimate is {"quantile": Estimate.QUANTILE, "pairwise": Estimate.WIN_RATE}.get(
        name, Estimate.ARMS
    )
    assert kind.arms is {"proportion": Kind.PROPORTION, "ratio": Kind.RATIO}.get(name, Kind.MEAN)
    if kind.estimate is not Estimate.WIN_RATE:
        assert kind.arms.outcomes == len(outcomes)


def test_a_share_counts_the_events_that_reach_its_threshold():
    metric = pb.ExperimentMetric(proportion=pb.ProportionMetric(event_name="clicks", threshold=0.0))

    assert list(metrics.outcomes_of(metric)) == [Outcome("clicks", COUNT, 0.0)]


def test_sources_are_summed_unless_they_say_otherwise():
    metric = pb.ExperimentMetric(ratio=pb.RatioMetric(numerator=VISITS, denominator=CLICKS))

    metrics.fill_defaults(metric)

    assert metric.ratio.numerator.aggregation == SUM
    assert metric.ratio.denominator.aggregation == pb.UNIT_AGGREGATION_MAX
