from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from neuroweaver.statistics import confidence_sequence, sequential, thompson
from neuroweaver.statistics.arm import Kind, Sample, arms
from neuroweaver.statistics.effect import Effect, effect
from neuroweaver.statistics.estimate import Bound
from neuroweaver.statistics.phases import combined
from samples import means, pair, share, shares, sums

RUNS, LOOKS, FIRST, STEP = 4000, 100, 1000, 100


def test_half_width_is_that_of_growthbook():
    """gbstats 0.8.0, SequentialTwoSidedTTest, absolute, tuned to 1000 of both arms' units by its approximate rho."""
    found = effect(
        *arms(
            Kind.MEAN,
            [Sample(sums(3000, 1396.87, 52377.9767)), Sample(sums(3461, 2422.7, 134698.29))],
        )
    )
    rho_squared = (-2 * math.log(0.05) + math.log(-2 * math.log(0.05) + 1)) / 1000

    half = sequential.boundary(6461 * rho_squared, 0.05) * found.std_error

    assert found.absolute - half == pytest.approx(-0.179089179094, abs=1e-11)
    assert found.absolute + half == pytest.approx(0.647842512427, abs=1e-11)


def test_the_interval_is_tightest_at_the_planned_sample():
    planned = 5000
    units = planned * np.exp(np.linspace(-3, 3, 2001))
    widths = [
        sequential.boundary(sequential.mixing(units, planned, alpha), alpha) for alpha in (0.01, 0.05, 0.3)
    ]

    assert [units[np.argmin(width)] for width in widths] == pytest.approx([planned] * 3, rel=1e-2)


def test_at_the_planned_sample_the_interval_is_half_as_wide_again_as_the_fixed_one():
    x = sequential.mixing(1000, 1000, 0.05)

    assert sequential.boundary(x, 0.05) == pytest.approx(3.0351, abs=1e-4)
    assert sequential.boundary(x, 0.05) ** 2 == pytest.approx(x + 1)


@pytest.mark.parametrize("units", [1, 100, 1000, 1e6])
def test_p_values_invert_the_boundaries(units):
    for alpha in (0.001, 0.05, 0.4):
        x = sequential.mixing(units, 1000, 0.05)

        assert sequential.p_value(sequential.boundary(x, alpha), x) == pytest.approx(alpha)
        one_sided = sequential.boundary_one_sided(x, alpha)
        assert sequential.p_value_one_sided(one_sided, x) == pytest.approx(alpha)


def test_p_values_are_one_without_evidence_and_never_out_of_range():
    x = np.array([1e-6, 1.0, 1e6])

    assert sequential.p_value(0.0, x).tolist() == [1.0] * 3
    assert sequential.p_value_one_sided(-5.0, x).tolist() == [1.0] * 3
    assert np.all((sequential.p_value(1e6, x) >= 0) & (sequential.p_value_one_sided(1e6, x) >= 0))


def test_one_sided_bound_is_nearer_than_the_two_sided_one():
    found = means(np.arange(1000.0), np.arange(1000.0) + 30)

    reach = sequential.boundary_one_sided(sequential.mixing(found.units, 1000, 0.1), 0.05) * found.std_error
    lower, upper = found.absolute - reach, found.absolute + reach
    both = confidence_sequence.infer(found, 0.95, 1000).absolute

    assert both.lower < lower < found.absolute < upper < both.upper
    assert confidence_sequence.p_one_sided(found, 0.95, 1000, Bound(lower)) == pytest.approx(0.05)
    assert confidence_sequence.p_one_sided(found, 0.95, 1000, Bound(upper), above=False) == pytest.approx(
        0.05
    )


def test_relative_interval_excludes_zero_together_with_the_absolute_one():
    generator = np.random.default_rng(1)
    seen = set()
    for shift in np.linspace(0, 0.5, 200):
        found = means(generator.normal(2, 1, 300), generator.normal(2 + shift, 1, 500))
        inference = confidence_sequence.infer(found, 0.95, 400)
        seen.add(is_significant := inference.p_value < 0.05)
        for interval in (inference.absolute, inference.relative):
            assert is_significant == (interval.lower > 0 or interval.upper < 0)
    assert seen == {True, False}


def test_constant_values_have_no_interval():
    found = means([1.0] * 5, [1.0] * 5)

    assert confidence_sequence.infer(found, 0.95, 100) is None
    assert confidence_sequence.p_one_sided(found, 0.95, 100) is None
    assert confidence_sequence.p_one_sided(found, 0.95, 100, above=False) is None


def test_shares_of_zero_in_both_arms_show_non_inferiority_in_the_end():
    """A thousand units without a failure, in both arms, say that there is less than 1 % to be afraid of."""
    found = shares((0, 1000), (0, 1000))

    assert confidence_sequence.p_one_sided(found, 0.95, 1000, Bound(0.01), above=False) < 0.05
    assert confidence_sequence.p_one_sided(found, 0.95, 1000, Bound(0.001), above=False) > 0.05


class Stream:
    """Sums over the units of one arm at each look. values: (runs, units of a block)."""

    def __init__(self) -> None:
        self.units, self.sums, self.squares = [0], [np.zeros(RUNS)], [np.zeros(RUNS)]

    def add(self, units: int, total, squares) -> None:
        self.units.append(self.units[-1] + units)
        self.sums.append(self.sums[-1] + total)
        self.squares.append(self.squares[-1] + squares)

    def moments(self):
        """Number of units, mean and variance: (looks, 1), (looks, runs), (looks, runs)."""
        units = np.array(self.units[1:], dtype=float)[:, None]
        mean = np.stack(self.sums[1:]) / units
        return units, mean, (np.stack(self.squares[1:]) / units - mean**2) * units / (units - 1)


def normal(generator, units):
    """Sum and sum of squares of standard normal values, drawn as what they are: normal, and chi-squared."""
    total = generator.normal(0, math.sqrt(units), RUNS)
    return total, total**2 / units + generator.chisquare(units - 1, RUNS)


def bernoulli(generator, units):
    total = generator.binomial(units, 0.1, RUNS).astype(float)
    return total, total


def lognormal(generator, units):
    values = np.exp(generator.standard_normal((RUNS, units), dtype=np.float32))
    return values.sum(axis=1, dtype=float), np.square(values).sum(axis=1, dtype=float)


def skewed(generator, units):
    """0, 1 and 10 with chances of 85, 12 and 3 %: skewness 5.2."""
    counts = generator.multinomial(units, [0.85, 0.12, 0.03], RUNS)
    return counts @ [0.0, 1.0, 10.0], counts @ [0.0, 1.0, 100.0]


def streams(draw, seed: int, step=(STEP, STEP), first=(FIRST, FIRST)):
    generator = np.random.default_rng(seed)
    control, treatment = Stream(), Stream()
    for look in range(LOOKS):
        for stream, start, more in zip((control, treatment), first, step, strict=True):
            units = start if look == 0 else more
            stream.add(units, *draw(generator, units))
    return control, treatment


def scores(control: Stream, treatment: Stream, lift: float = 0.0):
    """Units (harmonic mean) and z of every look and run, with the spread that sequential tests take."""
    n, a, v = control.moments()
    m, b, w = treatment.moments()
    own, other = (
        np.where((c**2 * k <= 300 * s) & (1.5 * k < others) & (t > s), t, s)
        for c, k, others, s, t in ((a, n, m, v, w), (b, m, n, w, v))
    )
    return 2 / (1 / n + 1 / m), (b + lift - a) / np.sqrt(own / n + other / m)


@pytest.mark.parametrize(("draw", "seed"), [(normal, 11), (bernoulli, 12), (lognormal, 13)])
def test_a_hundred_looks_find_nothing_where_there_is_nothing(draw, seed):
    """4,000 A/A tests, looked at from 1,000 units an arm on, planned for 2,000."""
    units, z = scores(*streams(draw, seed))
    p = sequential.p_value(z, sequential.mixing(units, 2000, 0.05))
    above = sequential.p_value_one_sided(z, sequential.mixing(units, 2000, 0.1))

    naive = (np.abs(z) > 1.96).any(axis=0).mean()
    false = (p < 0.05).any(axis=0).mean()
    one_sided = (above < 0.05).any(axis=0).mean()

    assert naive > 0.2
    assert 0.005 < false < 0.05
    assert 0.005 < one_sided < 0.05


def test_a_split_of_95_to_5_finds_nothing_either():
    units, z = scores(*streams(skewed, 14, step=(760, 40), first=(19_000, 1000)))
    p = sequential.p_value(z, sequential.mixing(units, 4000, 0.05))

    assert (p < 0.05).any(axis=0).mean() < 0.05


def test_rare_purchases_in_the_smaller_arm_find_nothing():
    """1 % of the units buy, for lognormal amounts; 19,000 units against 1,000, where ten have bought."""
    generator = np.random.default_rng(20)
    runs, false, bold = 200, 0, 0
    for _ in range(runs):
        amounts = np.zeros(60_000)
        bought = generator.random(60_000) < 0.01
        amounts[bought] = generator.lognormal(0, 1, bought.sum())
        control, treatment = amounts[:57_000], amounts[57_000:]
        looks = [means(control[: 19 * n], treatment[:n]) for n in range(1000, 3001, 250)]
        false += any(confidence_sequence.infer(look, 0.95, 2000).p_value < 0.05 for look in looks)
        plain = [replace(look, cautious=None) for look in looks]
        bold += any(confidence_sequence.infer(look, 0.95, 2000).p_value < 0.05 for look in plain)

    assert false / runs < 0.05
    assert bold / runs > 0.08


def test_an_arm_of_many_events_keeps_its_own_spread():
    generator = np.random.default_rng(21)
    found = means(generator.normal(10, 3, 5000), generator.normal(10, 1, 500))

    assert found.watched.variance == found.variance


def test_arms_of_like_size_keep_their_own_spreads():
    found = shares((2, 1000), (9, 1400))

    assert found.watched.variance == found.variance


def test_a_smaller_arm_of_few_events_takes_the_larger_spread():
    generator = np.random.default_rng(22)
    wide, narrow = generator.normal(0, 3, 5000), generator.normal(0, 1, 500)

    found = means(wide, narrow)

    assert found.watched.variance == pytest.approx(wide.var(ddof=1) * (1 / 5000 + 1 / 500))
    assert combined([found, found]).watched.variance == pytest.approx(found.watched.variance / 2)


@pytest.mark.parametrize("first", [(1000, 1000), (19_000, 1000)])
def test_the_simulated_scores_are_those_of_the_estimates(first):
    control, treatment = streams(skewed, 15, first=first)
    units, z = scores(control, treatment)
    for look, run in [(0, 0), (50, 17), (99, 3999)]:
        samples = [
            Sample(sums(s.units[look + 1], s.sums[look + 1][run], s.squares[look + 1][run]))
            for s in (control, treatment)
        ]
        inference = confidence_sequence.infer(effect(*arms(Kind.MEAN, samples)), 0.95, 2000)

        expected = sequential.p_value(z[look, run], sequential.mixing(units[look, 0], 2000, 0.05))
        assert inference.p_value == pytest.approx(float(expected))


def test_at_every_look_at_once_the_interval_holds_the_truth():
    """Coverage of an effect that is there, absolute and relative, over all looks together."""
    control, treatment = streams(normal, 16)
    n, a, v = control.moments()
    m, b, w = treatment.moments()
    covered = relative = 0
    for run in range(0, RUNS, 8):
        held = held_relative = True
        for look in range(0, LOOKS, 5):
            found = Effect(
                absolute=float(b[look, run] - a[look, run]) + 0.3,
                variance=float(v[look, run] / n[look, 0] + w[look, run] / m[look, 0]),
                baseline=float(a[look, run]) + 3,
                baseline_variance=float(v[look, run] / n[look, 0]),
                covariance=-float(v[look, run] / n[look, 0]),
                units=float(n[look, 0]),
                degrees_of_freedom=1e4,
            )
            inference = confidence_sequence.infer(found, 0.95, 2000)
            held &= inference.absolute.lower <= 0.3 <= inference.absolute.upper
            held_relative &= inference.relative.lower <= 0.1 <= inference.relative.upper
        covered += held
        relative += held_relative

    assert covered >= 0.95 * RUNS / 8
    assert relative >= 0.95 * RUNS / 8


def test_changing_weights_and_drifting_outcomes_find_nothing():
    """Five phases from 90/10 to 10/90 while the outcome rises from phase to phase and the treatment varies more."""
    generator = np.random.default_rng(17)
    runs, false, naive = 500, 0, 0
    splits = [(900, 100), (700, 300), (500, 500), (300, 700), (100, 900)]
    for _ in range(runs):
        past, crossed = [], False
        everything: tuple[list, list] = ([], [])
        for phase, split in enumerate(splits):
            arms_of_phase = [
                generator.normal(phase, spread, units) for spread, units in zip((1, 2), split, strict=True)
            ]
            for i in (0, 1):
                everything[i].append(arms_of_phase[i])
            for part in (0.5, 1.0):
                now = means(*(arm[: int(part * len(arm))] for arm in arms_of_phase))
                crossed |= confidence_sequence.infer(combined([*past, now]), 0.95, 1000).p_value < 0.05
            past.append(now)
        false += crossed
        pooled = means(*(np.concatenate(arm) for arm in everything))
        naive += confidence_sequence.infer(pooled, 0.95, 1000).p_value < 0.05

    assert false / runs < 0.05
    assert naive / runs > 0.9


def test_weights_that_follow_the_outcomes_find_nothing():
    """Thompson sampling over ten phases of 1,000 units, shares of 10 % in both arms, a look after each phase."""
    generator = np.random.default_rng(23)
    runs, false = 250, 0
    for _ in range(runs):
        past, crossed, weight = [], False, 0.5
        successes, units = np.zeros(2, dtype=int), np.zeros(2, dtype=int)
        for _ in range(10):
            treated = generator.binomial(1000, weight)
            new_units = np.array([1000 - treated, treated])
            new = generator.binomial(new_units, 0.1)
            successes, units = successes + new, units + new_units
            past.append(shares(*((int(s), int(n)) for s, n in zip(new, new_units, strict=True))))
            crossed |= confidence_sequence.infer(combined(past), 0.95, 1000).p_value < 0.05
            arms_so_far = [share(int(s), int(n)) for s, n in zip(successes, units, strict=True)]
            beliefs = [thompson.Belief(arm.units, arm.value, arm.std_error) for arm in arms_so_far]
            weight = thompson.weights(beliefs, 0.05, higher_is_better=True)[1]
        false += crossed

    assert false / runs < 0.05


def test_ratios_find_nothing_where_there_is_nothing():
    generator = np.random.default_rng(18)
    runs, false = 400, 0
    for _ in range(runs):
        requests = 1 + generator.poisson(generator.gamma(1.0, 3.0, (2, 3000)))
        rows = np.stack((generator.gamma(requests, 1.0), requests), axis=-1)
        looks = (pair(Kind.RATIO, *rows[:, :units]) for units in range(300, 3001, 300))
        false += any(confidence_sequence.infer(found, 0.95, 1000).p_value < 0.05 for found in looks)

    assert false / runs < 0.05


def test_one_phase_stays_itself():
    found = means([1.0, 2.0, 4.0], [2.0, 3.0, 7.0])

    assert combined([found]) is found
    assert combined([]) is None


def test_phases_are_weighted_by_their_units():
    generator = np.random.default_rng(19)
    first = means(generator.normal(0, 1, 100), generator.normal(1, 1, 300))
    second = means(generator.normal(5, 1, 50), generator.normal(5, 1, 50))

    found = combined([first, second])

    assert found.units == pytest.approx(150 + 50)
    assert found.absolute == pytest.approx(0.75 * first.absolute + 0.25 * second.absolute)
    assert found.baseline == pytest.approx(0.75 * first.baseline + 0.25 * second.baseline)
    assert found.variance == pytest.approx(0.75**2 * first.variance + 0.25**2 * second.variance)
