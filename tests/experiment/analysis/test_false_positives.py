"""A/A tests of every kind of metric, capped and adjusted ones among them; `bench/experiment_statistics.py` has
the long form, with looks while data come in.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from experiment.figures import EQUAL, cell, experiment, metric, reported
from neuroweaver.experiment.domain.snapshot import Calibration, Cell, Group, Snapshot
from neuroweaver.statistics.arm import Sample
from neuroweaver.statistics.moments import Moments
from neuroweaver.statistics.pairwise import Judgements
from neuroweaver.statistics.sketch import GROUPS, GroupedSketch
from neuroweaver.statistics.winsorization import calibrated
from neuroweaver.v1 import experiment_pb2 as pb

RUNS, UNITS = 100, 500
CAPS = pb.Winsorization(lower_quantile=0.01, upper_quantile=0.99)
RATE = pb.RatioMetric(numerator=pb.EventSource(event_name="cost"), denominator=pb.EventSource(event_name="n"))
METRICS = [
    metric("mean"),
    metric("capped", winsorization=CAPS),
    metric("adjusted", cuped=pb.Cuped(exposure_covariate="age")),
    metric("count", count=pb.CountMetric(event_name="n")),
    metric("share", proportion=pb.ProportionMetric(event_name="n")),
    metric("rate", ratio=RATE),
    metric("capped_rate", ratio=RATE, winsorization=CAPS),
    metric("median", quantile=pb.QuantileMetric(event_name="cost", quantile=0.5)),
    metric("better", pairwise=pb.PairwiseMetric(event_name="better")),
]


def sketched(generator) -> Cell:
    values, sketch = generator.lognormal(0, 1, UNITS), GroupedSketch()
    sketch.add(generator.integers(0, GROUPS, UNITS), values)
    return Cell(Sample(Moments.of(values)), UNITS, 0, sketch.to_bytes())


def adjusted(generator) -> Cell:
    before = generator.normal(0, 1, UNITS)
    both = np.stack((before + generator.normal(0, 1, UNITS), before), 1)
    return Cell(Sample(Moments.of(both), Moments.zero(1)), UNITS)


def rates(generator) -> np.ndarray:
    """Costs by request; a twentieth of the units have costs and no request, and some very many of both."""
    requests = np.ceil(generator.lognormal(1, 1, 2 * UNITS)) * (generator.random(2 * UNITS) > 0.05)
    costs = generator.lognormal(0, 1.5, 2 * UNITS) * np.maximum(requests, 1)
    return np.stack((costs, requests), 1)


def held(values: np.ndarray) -> list[np.ndarray]:
    """Of each variant, under caps of both."""
    columns = values.reshape(2 * UNITS, -1)
    capped = [calibrated(column, 0.01, 0.99).apply(column) for column in columns.T]
    return np.split(np.stack(capped, 1), 2)


def drawn(generator) -> Snapshot:
    rows = rates(generator)
    split = {
        "rate": np.split(rows, 2),
        "capped_rate": held(rows),
        "capped": held(generator.standard_t(2, 2 * UNITS)),
    }
    cells: dict[tuple[int, str, str], Cell] = {}
    for place, variant in enumerate(EQUAL):
        of = {
            "mean": cell(generator.exponential(1.0, UNITS)),
            "count": cell(generator.poisson(2.0, UNITS)),
            "share": cell(generator.random(UNITS) < 0.1),
            "median": sketched(generator),
            "adjusted": adjusted(generator),
        } | {name: cell(values[place]) for name, values in split.items()}
        cells |= {(1, variant, name): each for name, each in of.items()}
    wins, ties, losses = generator.multinomial(UNITS, [0.4, 0.2, 0.4]).tolist()
    tallies = {(1, "control", "tuned", "better"): Judgements(wins=wins, ties=ties, losses=losses)}
    groups = {(1, variant): Group(UNITS) for variant in EQUAL}
    calibrations = {name: Calibration(None, None, 2 * UNITS) for name in ("capped", "capped_rate")}
    return Snapshot(groups=groups, cells=cells, tallies=tallies, calibrations=calibrations)


def test_no_kind_of_metric_finds_more_than_its_level_where_there_is_nothing() -> None:
    kinds = {each.WhichOneof("definition") for each in METRICS}
    assert kinds == {
        field.name for field in pb.ExperimentMetric.DESCRIPTOR.oneofs_by_name["definition"].fields
    }
    made = experiment(metrics=METRICS, multiplicity_correction=pb.MULTIPLICITY_CORRECTION_NONE)
    generator, found, at_any_time = np.random.default_rng(11), Counter(), Counter()
    for _ in range(RUNS):
        for each in reported(made, drawn(generator)).results.metrics:
            (effect,) = each.effects
            found[each.metric_id] += effect.fixed_horizon.p_value < 0.05
            at_any_time[each.metric_id] += effect.always_valid.p_value < 0.05
    # 5 are expected; more than 14 would come in one of 7,000 tests at 5 %.
    assert {name: count for name, count in found.items() if count > 14} == {}
    assert {name: count for name, count in at_any_time.items() if count > 0.05 * RUNS} == {}
    # And a test at 5 % does find something.
    assert {name for name, count in found.items() if not count} == set()
