from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from neuroweaver.statistics import fixed
from neuroweaver.statistics.arm import Arm, Kind, Sample, arms
from neuroweaver.statistics.effect import effect, status
from neuroweaver.statistics.estimate import Bound, Status
from neuroweaver.statistics.moments import Moments
from samples import means, pair, ratios, share, shares, sums, within

# R's data set `sleep` (Student 1908): hours of extra sleep with two drugs.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_welch_is_that_of_r_on_the_sleep_data():
    """R documentation of t.test: t = -1.8608, df = 17.776, p = 0.07939, interval -3.3654832 to 0.2054832."""
    found = means(DRUG_2, DRUG_1)

    inference = fixed.infer(found, 0.95)

    assert found.absolute == pytest.approx(-1.58)
    assert found.degrees_of_freedom == pytest.approx(17.776, abs=5e-4)
    assert inference.p_value == pytest.approx(0.07939, abs=5e-6)
    assert inference.absolute.lower == pytest.approx(-3.3654832, abs=5e-8)
    assert inference.absolute.upper == pytest.approx(0.2054832, abs=5e-8)


def test_difference_of_means_is_that_of_growthbook():
    """gbstats 0.8.0, TwoSidedTTest, difference_type absolute, on the sums of its own tests."""
    found = effect(
        *arms(
            Kind.MEAN,
            [Sample(sums(3000, 1396.87, 52377.9767)), Sample(sums(3461, 2422.7, 134698.29))],
        )
    )

    inference = fixed.infer(found, 0.95)

    assert inference.absolute.lower == pytest.approx(-0.020137655346, abs=1e-12)
    assert inference.absolute.upper == pytest.approx(0.488890988680, abs=1e-12)
    assert inference.p_value == pytest.approx(0.071085449797, abs=1e-10)
    assert found.relative == pytest.approx(0.503361085856, abs=1e-12)


def test_difference_of_ratios_is_that_of_growthbook():
    """gbstats 0.8.0, TwoSidedTTest on RatioStatistic, difference_type absolute."""
    zeros = (0.0,) * 5
    control = Moments(500, 2, (300.0, 1000.0, 1500.0, 800.0, 2600.0), zeros)
    treatment = Moments(520, 2, (340.0, 1010.0, 1700.0, 850.0, 2700.0), zeros)

    found = effect(*arms(Kind.RATIO, [Sample(control), Sample(treatment)]))
    inference = fixed.infer(found, 0.95)

    assert found.absolute == pytest.approx(0.036633663366, abs=1e-12)
    assert inference.absolute.lower == pytest.approx(-0.064661036862, abs=1e-12)
    assert inference.absolute.upper == pytest.approx(0.137928363595, abs=1e-12)
    assert inference.p_value == pytest.approx(0.478068857192, abs=1e-9)


@pytest.mark.parametrize(
    ("treatment", "control", "lower", "upper"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_intervals_of_proportions_are_newcombes(treatment, control, lower, upper):
    """Newcombe 1998, Statistics in Medicine 17:873, table II, method 10, all eight examples."""
    interval = fixed.infer(shares(control, treatment), 0.95).absolute

    assert (interval.lower, interval.upper) == pytest.approx((lower, upper), abs=5e-5)


def test_interval_of_one_proportion_is_wilsons():
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3: 81 of 263, 0 of 20."""
    interval, none = fixed.arm_interval(share(81, 263), 0.95), fixed.arm_interval(share(0, 20), 0.95)

    assert (interval.lower, interval.upper) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert (none.lower, none.upper) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_interval_of_one_mean_is_students():
    [arm] = arms(Kind.MEAN, [Sample(Moments.of(DRUG_1))])

    interval = fixed.arm_interval(arm, 0.95)

    expected = stats.ttest_1samp(DRUG_1, 0).confidence_interval(0.95)
    assert (interval.lower, interval.upper) == pytest.approx(tuple(expected), rel=1e-12)


def test_no_interval_holds_zero_where_its_p_value_is_below_the_level():
    generator = np.random.default_rng(1)
    seen = set()
    for _ in range(400):
        control, treatment = generator.binomial(60, 0.3), generator.binomial(90, 0.45)
        proportion = shares((control, 60), (treatment, 90))
        mean = means(generator.exponential(1.0, 30), generator.exponential(1.5, 40))
        for found in (proportion, mean):
            inference = fixed.infer(found, 0.95)
            seen.add(is_significant := inference.p_value < 0.05)
            assert is_significant == (inference.absolute.lower > 0 or inference.absolute.upper < 0)
            if (relative := inference.relative) is not None:
                assert is_significant == (relative.lower > 0 or relative.upper < 0)
    assert seen == {True, False}


def test_one_sided_p_values_are_half_of_the_two_sided_one_on_their_side():
    for found in (means(DRUG_1, DRUG_2), shares((48, 80), (56, 70))):
        both = fixed.infer(found, 0.95).p_value

        assert fixed.p_one_sided(found) == pytest.approx(both / 2)
        assert fixed.p_one_sided(found, above=False) == pytest.approx(1 - both / 2)


def test_a_bound_at_the_end_of_an_interval_is_rejected_at_just_that_level():
    for found in (means(DRUG_1, DRUG_2), shares((48, 80), (56, 70))):
        interval = fixed.infer(found, 0.95).absolute

        assert fixed.p_one_sided(found, Bound(interval.lower)) == pytest.approx(0.025)
        assert fixed.p_one_sided(found, Bound(interval.upper), above=False) == pytest.approx(0.025)


def test_a_relative_bound_at_the_end_of_the_relative_interval_is_rejected_at_just_that_level():
    generator = np.random.default_rng(2)
    mean = means(generator.normal(10, 2, 200), generator.normal(11, 3, 100))
    for found in (mean, shares((48, 80), (56, 70))):
        interval = fixed.infer(found, 0.95).relative

        assert fixed.p_one_sided(found, Bound(interval.lower, is_relative=True)) == pytest.approx(0.025)
        assert fixed.p_one_sided(
            found, Bound(interval.upper, is_relative=True), above=False
        ) == pytest.approx(0.025)


def test_relative_effect_of_a_negative_value_keeps_the_sign_of_the_absolute_one():
    generator = np.random.default_rng(3)
    found = means(generator.normal(-10, 1, 100), generator.normal(-9, 1, 100))

    inference = fixed.infer(found, 0.95)

    assert found.relative == pytest.approx(0.1, abs=0.04)
    assert inference.relative.lower > 0
    assert fixed.p_one_sided(found, Bound(inference.relative.lower, is_relative=True)) == pytest.approx(0.025)


def test_a_control_whose_interval_holds_zero_has_no_relative_effect():
    found = means(DRUG_1, DRUG_2)

    inference = fixed.infer(found, 0.95)

    assert inference.relative is None
    assert status(found, inference) is Status.ZERO_BASELINE


def test_a_control_without_any_success_has_no_relative_effect():
    found = shares((0, 1000), (5, 1000))

    inference = fixed.infer(found, 0.95)

    assert status(found, inference) is Status.ZERO_BASELINE
    assert found.relative is None


def test_equal_values_have_a_mean_and_no_interval():
    found = means([3.0] * 10, [3.0] * 12)

    assert found.absolute == 0.0
    assert fixed.infer(found, 0.95) is None
    assert fixed.p_one_sided(found) is None
    assert fixed.p_one_sided(found, above=False) is None
    assert status(found, None) is Status.CONSTANT


def test_fewer_than_two_units_are_not_enough():
    found = arms(Kind.MEAN, [Sample(Moments.of([1.0])), Sample(Moments.of([1.0, 2.0]))])

    assert found[0] is None
    assert effect(*found) is None
    assert status(None, None) is Status.NOT_ENOUGH_DATA


def test_a_ratio_without_a_clear_denominator_is_not_estimated():
    none = arms(Kind.RATIO, [Sample(Moments.of([[0.0, 0.0], [0.0, 0.0]]))])
    noise = arms(Kind.RATIO, [Sample(Moments.of([[1.0, 5.0], [2.0, -4.0], [1.0, 0.5]]))])

    assert none == noise == [None]


def test_an_arm_that_never_varies_is_lent_the_other_ones_spread():
    spread = means([0.0] * 100, [0.0] * 95 + [1.0] * 5)

    assert spread.variance == pytest.approx(2 * np.var([0.0] * 95 + [1.0] * 5, ddof=1) / 100)
    assert fixed.infer(spread, 0.95).absolute.lower < 0


def test_shares_of_zero_in_both_arms_have_an_interval():
    inference = fixed.infer(shares((0, 1000), (0, 1000)), 0.95)

    assert inference.p_value == 1.0
    assert inference.absolute.upper == pytest.approx(0.0038268, abs=5e-7)


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_any_size_of_values_gives_the_same_answer(size):
    generator = np.random.default_rng(4)
    control, treatment = generator.normal(10, 2, 50), generator.normal(11, 2, 50)

    inference = fixed.infer(means(control * size, treatment * size), 0.95)
    unscaled = fixed.infer(means(control, treatment), 0.95)

    assert inference.p_value == pytest.approx(unscaled.p_value)
    assert inference.absolute.upper == pytest.approx(unscaled.absolute.upper * size)
    assert inference.relative.upper == pytest.approx(unscaled.relative.upper)


def covers(interval, truth) -> bool:
    return bool(interval.lower <= truth <= interval.upper)


def test_coverage_of_means_absolute_and_relative():
    generator = np.random.default_rng(5)
    absolute = relative = 0
    for _ in range(4000):
        inference = fixed.infer(means(generator.gamma(2.0, 1.0, 150), generator.gamma(2.0, 1.2, 300)), 0.95)
        absolute += covers(inference.absolute, 0.4)
        relative += covers(inference.relative, 0.2)

    assert within(absolute, 4000)
    assert within(relative, 4000)


def test_coverage_of_lognormal_means():
    generator = np.random.default_rng(6)
    covered = 0
    for _ in range(2000):
        found = means(generator.lognormal(0, 1, 2000), generator.lognormal(0, 1, 2000))
        covered += covers(fixed.infer(found, 0.95).absolute, 0.0)

    assert within(covered, 2000)


def test_coverage_of_ratios():
    """Requests and their cost, correlated within a unit."""
    generator = np.random.default_rng(7)

    def units(count: int, cost: float):
        requests = 1 + generator.poisson(generator.gamma(2.0, 2.0, count))
        return np.stack(
            (generator.gamma(requests, cost) * generator.lognormal(0, 0.5, count), requests), axis=1
        )

    truth = 0.2 * np.exp(0.125)
    absolute = relative = 0
    for _ in range(3000):
        inference = fixed.infer(ratios(units(400, 1.0), units(300, 1.2)), 0.95)
        absolute += covers(inference.absolute, truth)
        relative += covers(inference.relative, 0.2)

    assert within(absolute, 3000)
    assert within(relative, 3000)


@pytest.mark.parametrize(
    ("control", "treatment"),
    [((1000, 0.1), (1000, 0.12)), ((1000, 0.01), (500, 0.01)), ((200, 0.97), (300, 0.95))],
)
def test_coverage_of_proportions_over_all_outcomes(control, treatment):
    """Not simulated: every pair of counts, weighted by its chance."""
    (n, p), (m, q) = control, treatment
    counts, others = np.arange(n + 1), np.arange(m + 1)
    chance, other = stats.binom.pmf(counts, n, p), stats.binom.pmf(others, m, q)
    covered = ratio = total = 0.0
    for a in counts[chance > 1e-5]:
        for b in others[other > 1e-5][::2]:
            weight = chance[a] * other[b]
            inference = fixed.infer(shares((int(a), n), (int(b), m)), 0.95)
            total += weight
            covered += weight * covers(inference.absolute, q - p)
            ratio += weight * (inference.relative is None or covers(inference.relative, q / p - 1))

    assert 0.94 < covered / total < 0.97
    assert 0.94 < ratio / total < 0.975


def test_an_arm_holds_its_standard_error():
    arm = Arm(400, 1.0, 4.0, 1.0, 4.0, 4.0)

    assert arm.std_error == 0.1
    assert not arm.is_adjusted


def test_kinds_other_than_a_plain_proportion_have_no_counts():
    assert pair(Kind.MEAN, [0.0, 1.0, 1.0], [1.0, 0.0, 1.0]).proportions is None
    assert pair(Kind.PROPORTION, [0.0, 1.0, 1.0], [1.0, 0.0, 1.0]).proportions is not None
