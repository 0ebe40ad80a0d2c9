from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment.serving import metric, spec
from neuroweaver.experiment.intake.keys import keys_of, sketch_groups
from neuroweaver.experiment.intake.readings import JUDGEMENT_TYPE, SAMPLE_TYPE, Plan
from neuroweaver.experiment.intake.unit_table import UnitTable, packed, unpacked
from neuroweaver.experiment.intake.units import Records
from neuroweaver.statistics.sketch import GROUPS
from neuroweaver.statistics.winsorization import Caps
from neuroweaver.v1 import experiment_pb2 as pb

# Of four units.
KEYS = np.arange(8, dtype=np.uint64).reshape(4, 2)


def source(name="score", aggregation=pb.UNIT_AGGREGATION_SUM):
    return pb.EventSource(event_name=name, aggregation=aggregation)


def mean_of(aggregation, **fields):
    return named("score", mean=pb.MeanMetric(source=source(aggregation=aggregation)), **fields)


def named(metric_id, **fields):
    return pb.ExperimentMetric(metric_id=metric_id, goal=pb.METRIC_GOAL_INCREASE, **fields)


def events(plan, exposures, samples):
    """exposures: (unit, time, phase, variant). samples: (unit, time, name, value)."""
    shown = np.zeros(len(exposures), plan.exposure_type)
    for row, (_, time, phase, variant) in zip(shown, exposures, strict=True):
        row["time"], row["phase"], row["variant"] = time, phase, variant
        row["variants"], row["covariates"] = 1 << variant, np.nan
    measured = np.array([each[1:] for each in samples], SAMPLE_TYPE)
    return (
        Records(np.array([each[0] for each in exposures], np.int64), shown),
        Records(np.array([each[0] for each in samples], np.int64), measured),
        Records.none(JUDGEMENT_TYPE),
    )


def population(plan, exposures, samples):
    told = events(plan, exposures, samples)
    return UnitTable(plan).population(KEYS, told[0], told[2]).joined(*told).new


def rows_of(made, exposures, samples):
    plan = Plan(spec(metrics=[made]))
    return population(plan, exposures, samples).rows(plan.readings[0])


@pytest.mark.parametrize(
    ("aggregation", "value", "of_none"),
    [
        (pb.UNIT_AGGREGATION_SUM, 6.0, True),
        (pb.UNIT_AGGREGATION_COUNT, 3.0, True),
        (pb.UNIT_AGGREGATION_MEAN, 2.0, False),
        (pb.UNIT_AGGREGATION_MAX, 4.0, False),
        (pb.UNIT_AGGREGATION_MIN, -1.0, False),
    ],
)
def test_a_units_events_become_one_value(aggregation, value, of_none):
    samples = [(0, 11, 0, 3.0), (0, 12, 0, 4.0), (0, 13, 0, -1.0), (0, 9, 0, 100.0)]
    rows = rows_of(mean_of(aggregation), [(0, 10, 1, 0), (1, 10, 1, 1)], samples)
    assert rows.outcomes[:2, 0].tolist() == [value, 0.0]
    assert rows.is_there[:2].tolist() == [True, of_none]
    assert rows.events[:2].tolist() == [3, 0]


def test_a_proportion_asks_whether_any_event_reaches_the_threshold():
    made = metric(proportion=pb.ProportionMetric(event_name="score", threshold=2.0))
    exposures = [(0, 1, 1, 0), (1, 1, 1, 0), (2, 1, 1, 0)]
    rows = rows_of(made, exposures, [(0, 2, 0, 1.9), (1, 2, 0, 2.0), (1, 3, 0, 5.0)])
    assert rows.outcomes[:3, 0].tolist() == [0.0, 1.0, 0.0]


def test_without_a_threshold_any_event_makes_a_proportion():
    rows = rows_of(
        metric(proportion=pb.ProportionMetric(event_name="score")), [(0, 1, 1, 0)], [(0, 1, 0, -7.0)]
    )
    assert rows.outcomes[0].tolist() == [1.0]


def test_a_ratio_has_a_column_for_each_sum():
    made = metric(ratio=pb.RatioMetric(numerator=source("cost"), denominator=source("cost", 2)))
    rows = rows_of(made, [(0, 1, 1, 0)], [(0, 2, 0, 1.5), (0, 3, 0, 2.5)])
    assert rows.outcomes[0].tolist() == [4.0, 2.0]


def test_a_ratio_is_capped_as_the_units_own_ratio():
    made = metric(
        ratio=pb.RatioMetric(numerator=source("cost"), denominator=source("cost", 2)),
        winsorization=pb.Winsorization(upper_value=1.0),
    )
    rows = rows_of(made, [(0, 1, 1, 0), (1, 1, 1, 0)], [(0, 2, 0, 1.5), (0, 3, 0, 2.5), (1, 2, 0, 0.5)])
    assert rows.outcomes[:2].tolist() == [[2.0, 2.0], [0.5, 1.0]]


def test_a_ratio_beyond_every_cap_counts_as_nothing_over_nothing():
    """A numerator that may be twice its denominator at most, and no less than half of it."""
    made = metric(
        ratio=pb.RatioMetric(numerator=source("cost"), denominator=source("requests")),
        winsorization=pb.Winsorization(lower_value=0.5, upper_value=2.0),
    )
    for parts, held in (
        ([(1001.0, 0.0), (-3.0, 0.0), (0.0, 0.0), (9.0, 3.0)], [0.0, 0.0, 0.0, 6.0]),
        ([(1.0, 4.0), (5.0, 4.0), (-9.0, -3.0), (1.0, -2.0)], [2.0, 5.0, -6.0, -1.0]),
    ):
        samples = [(i, 2, name, part[name]) for i, part in enumerate(parts) for name in (0, 1)]
        rows = rows_of(made, [(i, 1, 1, 0) for i in range(4)], samples)
        assert rows.outcomes[:, 0].tolist() == held
        assert rows.outcomes[:, 1].tolist() == [part[1] for part in parts]


def test_without_a_cap_on_its_side_a_ratio_over_nothing_stays():
    made = metric(
        ratio=pb.RatioMetric(numerator=source("cost"), denominator=source("requests")),
        winsorization=pb.Winsorization(lower_value=0.5),
    )
    rows = rows_of(made, [(0, 1, 1, 0), (1, 1, 1, 0)], [(0, 2, 0, 7.0), (1, 2, 0, -7.0)])
    assert rows.outcomes[:2].tolist() == [[7.0, 0.0], [0.0, 0.0]]


def test_caps_by_quantiles_hold_for_each_part_of_a_ratio():
    made = metric(ratio=pb.RatioMetric(numerator=source("cost"), denominator=source("requests")))
    made.winsorization.CopyFrom(pb.Winsorization(upper_quantile=0.9, calibration_units=100))
    plan = Plan(spec(metrics=[made]))
    samples = [(0, 2, 0, 1002.0), (1, 2, 0, 3.0), (1, 2, 1, 50.0)]
    found = population(plan, [(0, 1, 1, 0), (1, 1, 1, 0)], samples)
    rows = found.rows(plan.readings[0], (Caps(upper=5.0), Caps(upper=20.0)))
    assert rows.outcomes[:2].tolist() == [[5.0, 0.0], [3.0, 20.0]]
    assert rows.uncapped[:2].tolist() == [[1002.0, 0.0], [3.0, 50.0]]


def test_events_from_the_first_exposure_on_count_whatever_the_unit_meets_later():
    rows = rows_of(
        mean_of(pb.UNIT_AGGREGATION_SUM),
        [(0, 20, 2, 1), (0, 10, 1, 0), (1, 15, 1, 0)],
        [(0, 19, 0, 1.0), (0, 20, 0, 2.0), (0, 30, 0, 4.0), (0, 10, 0, 8.0), (1, 99, 0, 16.0)],
    )
    assert rows.outcomes[:2, 0].tolist() == [15.0, 16.0]


def test_sums_do_not_depend_on_the_order_even_where_terms_cancel():
    values = [1e15, 3.0, -1e15, 0.1, 7e14, -7e14]
    plan = Plan(spec(metrics=[mean_of(pb.UNIT_AGGREGATION_SUM)]))
    found = set()
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 5, 1, 0, 3, 4]):
        rows = population(plan, [(0, 1, 1, 0)], [(0, 2, 0, values[place]) for place in order])
        found.add(float(rows.rows(plan.readings[0]).outcomes[0, 0]))
    assert found == {3.1}


samples = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(0, 30), st.integers(0, 1), st.floats(-1e6, 1e6, allow_subnormal=False)
    ),
    max_size=20,
)
exposures = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(1, 3), st.integers(0, 1)), max_size=8
)


@settings(deadline=None)
@given(
    exposures,
    samples,
    st.randoms(use_true_random=False),
    st.lists(st.integers(0, 8), max_size=3),
    st.lists(st.integers(0, 20), max_size=3),
)
def test_order_and_parts_make_no_difference(shown, measured, random, cuts, cuts_samples):
    made = [
        metric("score", conversion_window=pb_microseconds(12), cuped=pb.Cuped(lookback=pb_microseconds(9))),
        named("other", mean=pb.MeanMetric(source=source("other", pb.UNIT_AGGREGATION_MAX))),
        named("sum", mean=pb.MeanMetric(source=source("score")), cuped=pb.Cuped(lookback=pb_microseconds(5))),
        named("share", proportion=pb.ProportionMetric(event_name="other", threshold=2.0)),
    ]
    plan = Plan(spec(metrics=made))
    whole = population(plan, shown, measured)
    table = UnitTable(plan)
    mixed, mixed_samples = random.sample(shown, len(shown)), random.sample(measured, len(measured))
    bounds = zip(
        [0, *sorted(cuts), *[8] * (3 - len(cuts)), 8],
        [0, *sorted(cuts_samples), *[20] * (3 - len(cuts_samples)), 20],
        strict=True,
    )
    parts = list(bounds)
    for (start, start_samples), (end, end_samples) in itertools.pairwise(parts):
        some = events(plan, mixed[start:end], mixed_samples[start_samples:end_samples])
        change = table.population(KEYS, some[0], some[2]).joined(*some)
        after = table.everyone_after(KEYS, change)
        assert table.put(KEYS, change).tolist() == [0, 1, 2, 3]
        assert after.exposures.tobytes() == table.everyone().exposures.tobytes()
        if random.random() < 0.5:
            table = UnitTable.from_arrays(plan, unpacked(packed(dict(table.arrays()))))
    found = table.everyone()
    assert found.exposures.tobytes() == whole.exposures.tobytes()
    assert found.unexposed_samples == whole.unexposed_samples
    for reading in plan.readings:
        ours, theirs = found.rows(reading), whole.rows(reading)
        assert ours.outcomes == pytest.approx(theirs.outcomes, rel=1e-12, abs=1e-15)
        assert ours.covariates == pytest.approx(theirs.covariates, rel=1e-12, abs=1e-15)
        assert ours.events.tolist() == theirs.events.tolist()
        assert ours.is_there.tolist() == theirs.is_there.tolist()


def pb_microseconds(number):
    return pb.Cuped(lookback={"nanos": number * 1000}).lookback


def test_units_spread_evenly_over_the_groups_of_sketches():
    keys = keys_of("p", "t", [f"user-{i}" for i in range(64_000)])
    counts = np.bincount(sketch_groups(keys), minlength=GROUPS)

    assert len(counts) == GROUPS
    assert ((counts - 1000) ** 2 / 1000).sum() < 103.4  # chi-squared, 63 degrees of freedom, 0.1 %


def test_an_event_that_two_quantile_metrics_read_is_sketched_once():
    median, tail = (
        named(name, quantile=pb.QuantileMetric(event_name="score", quantile=level))
        for name, level in (("median", 0.5), ("tail", 0.9))
    )
    plan = Plan(spec(metrics=[median, tail]))
    told = events(plan, [(0, 1, 1, 0)], [(0, 5, 0, 3.0)])

    change = UnitTable(plan).population(KEYS, told[0], told[2]).joined(*told)

    ((unit, value),) = change.counted.values()
    assert unit.tolist() == [0]
    assert value.tolist() == [3.0]
