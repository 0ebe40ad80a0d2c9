from __future__ import annotations

import numpy as np
import pytest

from neuroweaver.statistics import fixed, quantile
from neuroweaver.statistics.estimate import Bound
from neuroweaver.statistics.sketch import GROUPS, GroupedSketch
from samples import within


def requests(generator, units: int, lift: float = 1.0):
    """Latencies of requests, several a unit and alike within it: values, the group of each, and units."""
    counts = 1 + generator.poisson(generator.gamma(1.0, 3.0, units))
    pace = generator.lognormal(0, 0.6, units)
    values = np.repeat(pace, counts) * generator.lognormal(0, 0.8, counts.sum()) * 100 * lift
    return values, np.repeat(generator.integers(0, GROUPS, units), counts), units


def arm(sample, level: float):
    values, groups, units = sample
    return quantile.of_events(values, np.ones(len(values)), groups, units, level)


def independent(values, level: float):
    """Values that are taken for one a unit."""
    groups = np.random.default_rng(len(values)).integers(0, GROUPS, len(values))
    return arm((values, groups, len(values)), level)


@pytest.fixture(scope="module")
def population():
    return requests(np.random.default_rng(99), 600_000)[0]


def test_the_value_is_the_quantile_of_the_events():
    sample = requests(np.random.default_rng(1), 500)

    assert arm(sample, 0.95).value == pytest.approx(np.quantile(sample[0], 0.95), rel=1e-2)
    assert independent(np.arange(1001.0), 0.5).value == pytest.approx(500.0)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_coverage_of_requests_that_come_in_clusters(population, level):
    generator = np.random.default_rng(int(level * 100))
    truth = np.quantile(population, level)
    covered = relative = told = naive = 0
    for _ in range(600):
        control, treatment = requests(generator, 1000), requests(generator, 1000, 1.1)
        inference = quantile.infer(arm(control, level), arm(treatment, level), 0.95)
        if inference is None:
            continue
        told += 1
        covered += inference.absolute.lower <= 0.1 * truth <= inference.absolute.upper
        relative += inference.relative.lower <= 0.1 <= inference.relative.upper
        lower, upper = independent(control[0], level).limits(1.96)
        naive += lower <= truth <= upper

    assert told > 550
    assert within(covered, told)
    assert within(relative, told)
    assert naive / told < 0.92


def test_coverage_of_unit_means():
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(1500):
        arms = [independent(generator.exponential(1.0, 500), 0.9) for _ in range(2)]
        inference = quantile.infer(*arms, 0.95)
        covered += inference.absolute.lower <= 0 <= inference.absolute.upper

    assert within(covered, 1500)


def test_the_interval_holds_zero_only_together_with_the_p_value():
    generator = np.random.default_rng(3)
    seen = set()
    for lift in np.linspace(1.0, 1.5, 40):
        arms = arm(requests(generator, 400), 0.9), arm(requests(generator, 400, lift), 0.9)
        for inference in (quantile.infer(*arms, 0.95), quantile.infer_always_valid(*arms, 0.95, 400)):
            seen.add(is_significant := inference.p_value < 0.05)
            assert is_significant == (inference.absolute.lower > 0 or inference.absolute.upper < 0)
            assert is_significant == (inference.relative.lower > 0 or inference.relative.upper < 0)
    assert seen == {True, False}


def test_bounds_at_the_ends_of_the_intervals_are_rejected_at_just_that_level():
    generator = np.random.default_rng(4)
    arms = arm(requests(generator, 2000), 0.9), arm(requests(generator, 2000, 1.2), 0.9)
    inference = quantile.infer(*arms, 0.95)

    assert quantile.p_one_sided(*arms, Bound(inference.absolute.lower)) == pytest.approx(0.025, rel=1e-3)
    relative = Bound(inference.relative.upper, is_relative=True)
    assert quantile.p_one_sided(*arms, relative) == pytest.approx(0.975, rel=1e-3)


def test_always_valid_bounds_ask_for_more():
    generator = np.random.default_rng(5)
    arms = arm(requests(generator, 2000), 0.9), arm(requests(generator, 2000, 1.2), 0.9)

    once = quantile.p_one_sided(*arms, Bound(5.0))
    ever = quantile.p_one_sided_always_valid(*arms, 0.95, 2000, Bound(5.0))
    worse = quantile.p_one_sided_always_valid(*arms, 0.95, 2000, Bound(1000.0), above=False)

    assert once < ever < 0.05
    assert worse < 0.05


def test_a_quantile_beyond_the_data_has_no_interval():
    arms = [independent(np.random.default_rng(i).normal(0, 1, 60), 0.99) for i in (6, 7)]

    assert quantile.infer(*arms, 0.95) is None
    assert quantile.infer_always_valid(*arms, 0.95, 60) is None
    assert arms[0].std_error is None or quantile.infer(*arms, 0.95) is None


def test_too_few_groups_or_equal_values_tell_nothing():
    ones = np.ones(50)

    assert quantile.of_events(np.arange(50.0), ones, np.arange(50) % 9, 50, 0.5) is None
    assert quantile.of_events(ones, ones, np.arange(50) % 20, 50, 0.5) is None
    assert quantile.of_events([], [], [], 0, 0.5) is None


def test_the_normal_effect_agrees_with_the_limits():
    generator = np.random.default_rng(8)
    arms = arm(requests(generator, 3000), 0.5), arm(requests(generator, 3000, 1.1), 0.5)

    normal = fixed.infer(quantile.effect(*arms), 0.95)

    exact = quantile.infer(*arms, 0.95)
    assert normal.absolute.lower == pytest.approx(exact.absolute.lower, abs=0.15 * exact.absolute.upper)
    assert normal.relative.upper == pytest.approx(exact.relative.upper, rel=0.1)


def test_negative_values_have_a_difference_and_no_quotient():
    generator = np.random.default_rng(9)
    arms = [independent(generator.normal(-3, 1, 500), 0.5) for _ in range(2)]

    inference = quantile.infer(*arms, 0.95)

    assert inference.relative is None
    assert inference.absolute.lower < 0 < inference.absolute.upper


def test_a_sketch_tells_what_the_events_tell():
    sample = requests(np.random.default_rng(10), 20_000)
    values, groups, units = sample
    sketch = GroupedSketch()
    for part in np.array_split(np.arange(len(values)), 7):
        sketch.add(groups[part], values[part])

    found, exact = sketch.arm(units, 0.95), arm(sample, 0.95)

    assert sketch.events == len(values)
    assert 0 < sketch.rank_error < 0.002
    lower, upper = exact.limits(3.0)
    assert lower < found.value < upper
    assert found.share_error == pytest.approx(exact.share_error, rel=0.5)


def test_a_small_sketch_is_exact():
    sample = requests(np.random.default_rng(11), 500)
    sketch = GroupedSketch()
    sketch.add(sample[1], sample[0])

    assert sketch.rank_error == 0.0
    assert sketch.arm(500, 0.9).limits(2.0) == arm(sample, 0.9).limits(2.0)


def test_sketches_merge():
    one, other, both = GroupedSketch(), GroupedSketch(), GroupedSketch()
    values, groups, _ = requests(np.random.default_rng(12), 300)
    half = len(values) // 2
    one.add(groups[:half], values[:half])
    other.add(groups[half:], values[half:])
    both.add(groups, values)

    one.merge(other)

    assert one.events == both.events
    assert one.arm(300, 0.5).value == pytest.approx(both.arm(300, 0.5).value)


def test_a_sketch_survives_its_bytes():
    sketch = GroupedSketch()
    values, groups, _ = requests(np.random.default_rng(13), 3000)
    sketch.add(groups, values)

    again = GroupedSketch.from_bytes(sketch.to_bytes())

    assert again.events == sketch.events
    assert again.arm(3000, 0.95).limits(2.0) == sketch.arm(3000, 0.95).limits(2.0)


def test_an_empty_sketch_tells_nothing():
    empty = GroupedSketch.from_bytes(GroupedSketch().to_bytes())

    assert (empty.events, empty.rank_error, empty.arm(0, 0.5)) == (0, 0.0, None)


@pytest.mark.parametrize("data", [b"", b"\x05\x00\x00\x00abc", GroupedSketch().to_bytes() + b"x"])
def test_bytes_of_something_else_are_refused(data):
    with pytest.raises(ValueError, match="not a grouped sketch"):
        GroupedSketch.from_bytes(data)
