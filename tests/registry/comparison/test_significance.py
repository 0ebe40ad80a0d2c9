from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neuroweaver.registry.comparison.significance import Estimate, difference
from neuroweaver.registry.domain.model import Metric
from neuroweaver.statistics.estimate import Interval
from neuroweaver.statistics.wilson import wilson_interval


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def sampled(*samples: float, interval: Interval | None = None) -> Metric:
    return Metric(value=math.fsum(samples) / len(samples), samples=samples, interval=interval)


def around(value: float, lower: float, upper: float, confidence: float = 0.95) -> Metric:
    return Metric(value=value, interval=Interval(lower, upper, confidence))


def wilson(successes: int, n: int, confidence: float = 0.95) -> Metric:
    lower, upper = wilson_interval(successes, n, confidence=confidence)
    return around(successes / n, lower, upper, confidence)


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.interval is not None
    return estimate.interval.lower, estimate.interval.upper


# Student's sleep data, as R has it in datasets::sleep.
SLEEP_1 = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
SLEEP_2 = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)
# Miles per gallon of datasets::mtcars by its column am.
AUTOMATIC = (
    21.4, 18.7, 18.1, 14.3, 24.4, 22.8, 19.2, 17.8, 16.4, 17.3, 15.2, 10.4, 10.4, 14.7, 21.5, 15.5, 15.2,
    13.3, 19.2,
)  # fmt: skip
MANUAL = (21, 21, 22.8, 32.4, 30.4, 33.9, 27.3, 26, 30.4, 15.8, 19.7, 15, 21.4)


@pytest.mark.parametrize(
    ("first", "second", "interval", "p_value"),
    [
        # R: t.test(extra ~ group, data = sleep), t = -1.8608, df = 17.776
        (SLEEP_1, SLEEP_2, (-3.3654832, 0.2054832), 0.07939),
        # R: t.test(mpg ~ am, data = mtcars), t = -3.7671, df = 18.332
        (AUTOMATIC, MANUAL, (-11.280194, -3.209684), 0.001374),
    ],
)
def test_samples_on_both_sides_give_what_r_prints_for_welchs_test(first, second, interval, p_value):
    found = difference(sampled(*second), sampled(*first), 0.95)

    assert bounds(found) == pytest.approx(interval, rel=1e-6)
    assert found.p_value == pytest.approx(p_value, rel=1e-3)
    assert found.value == pytest.approx(sum(first) / len(first) - sum(second) / len(second))


@pytest.mark.parametrize(
    ("first", "second", "interval"),
    [
        # Newcombe 1998, Statistics in Medicine 17:873, table II, method 10: MOVER over Wilson intervals.
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((6, 7), (2, 7), (0.0582, 0.8062)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
        ((0, 10), (0, 20), (-0.1611, 0.2775)),
        ((10, 10), (0, 20), (0.6791, 1.0000)),
    ],
)
def test_intervals_on_both_sides_give_newcombes_table(first, second, interval):
    found = difference(wilson(*second), wilson(*first), 0.95)

    assert bounds(found) == pytest.approx(interval, abs=5e-5)
    assert (found.p_value < 0.05) == (interval[0] > 0)


def test_intervals_of_other_confidence_are_brought_to_the_one_asked_for():
    # Two normal estimates with standard error 1, at 90 and 99 %.
    a = around(0.0, -1.6448536, 1.6448536, 0.9)
    b = around(3.0, 3 - 2.5758293, 3 + 2.5758293, 0.99)

    found = difference(a, b, 0.95)

    assert bounds(found) == pytest.approx((3 - 1.959964 * math.sqrt(2), 3 + 1.959964 * math.sqrt(2)))
    assert found.p_value == pytest.approx(2 * (1 - NormalDist().cdf(3 / math.sqrt(2))))
    assert found.interval.confidence == 0.95


@pytest.mark.parametrize("metrics", [(wilson(3, 10), wilson(9, 10)), (wilson(30, 40), wilson(12, 40))])
def test_the_p_value_is_where_the_interval_begins_to_hold_zero(metrics):
    p_value = difference(*metrics, 0.95).p_value

    lower, upper = bounds(difference(*metrics, 1 - p_value))

    assert min(abs(lower), abs(upper)) == pytest.approx(0, abs=1e-9)


def test_the_other_way_round_is_the_mirror_image():
    for a, b in [(wilson(3, 10), wilson(9, 10)), (sampled(*SLEEP_1), sampled(*SLEEP_2))]:
        forth, back = difference(a, b, 0.9), difference(b, a, 0.9)

        assert bounds(back) == pytest.approx(tuple(-bound for bound in reversed(bounds(forth))))
        assert back.p_value == pytest.approx(forth.p_value)


def test_samples_meet_an_interval_through_their_own_t_interval():
    a, b = around(4.0, 3.0, 4.5), sampled(5.0, 6.0, 7.0, 8.0)
    half = stats.t.ppf(0.975, 3) * np.std(b.samples, ddof=1) / 2

    found = difference(a, b, 0.95)

    assert bounds(found) == pytest.approx((2.5 - math.hypot(half, 0.5), 2.5 + math.hypot(half, 1.0)))


def test_without_samples_or_interval_on_both_sides_nothing_is_said():
    known = [sampled(1.0, 2.0, 3.0), around(2.0, 1.0, 3.0)]

    for metric in known:
        assert difference(metric, Metric(value=5.0), 0.95) == Estimate(5.0 - metric.value)
        assert difference(Metric(value=5.0), metric, 0.95) == Estimate(metric.value - 5.0)
    assert difference(sampled(1.0), sampled(2.0), 0.95) == Estimate(1.0)


def test_samples_that_never_vary_are_no_certainty():
    assert difference(sampled(7, 7, 7), sampled(7, 7, 7), 0.95) == Estimate(0.0)
    assert difference(sampled(0, 0), sampled(10, 10), 0.95) == Estimate(10.0)
    # 0.1 + 0.2 and 0.3 differ by rounding alone.
    assert difference(sampled(0.1 + 0.2, 0.3), sampled(0.7, 0.7), 0.95).p_value is None


def test_samples_that_never_vary_are_lent_the_other_sides_spread():
    varied = (4.0, 5.0, 6.0, 5.5, 4.5)
    few = difference(sampled(*varied), sampled(9.0, 9.0), 0.95)
    many = difference(sampled(*varied), sampled(*[9.0] * 200), 0.95)
    half = stats.t.ppf(0.975, 4) * np.std(varied, ddof=1)

    assert bounds(few)[0] == pytest.approx(4.0 - math.hypot(half / math.sqrt(2), half / math.sqrt(5)))
    assert bounds(many)[0] == pytest.approx(4.0 - math.hypot(half / math.sqrt(200), half / math.sqrt(5)))
    assert 0 < many.p_value < few.p_value


def test_samples_that_never_vary_leave_the_word_to_intervals():
    ones = sampled(*[1.0] * 20, interval=wilson(20, 20).interval)

    assert difference(wilson(10, 20), ones, 0.95) == difference(wilson(10, 20), wilson(20, 20), 0.95)


def test_samples_whose_mean_is_not_the_value_say_nothing_about_it():
    # A 95th percentile of latencies.
    slow = Metric(value=19.0, samples=tuple(range(1, 21)))
    slower = Metric(value=29.0, samples=tuple(range(11, 31)))

    assert difference(slow, slower, 0.95) == Estimate(10.0)


def test_a_rounded_value_is_still_the_mean_of_its_samples():
    exact, rounded = sampled(*SLEEP_1), Metric(value=0.8, samples=SLEEP_1)

    assert bounds(difference(rounded, sampled(*SLEEP_2), 0.95)) == bounds(
        difference(exact, sampled(*SLEEP_2), 0.95)
    )


@pytest.mark.parametrize(
    "odd",
    [
        around(5.0, 6.0, 7.0),  # does not hold its value
        around(5.0, 3.0, 4.0),
        around(5.0, 4.0, 6.0, 1e-300),  # holds hardly ever
    ],
)
def test_an_interval_that_is_none_proves_nothing(odd):
    assert difference(around(1.0, 0.0, 2.0), odd, 0.95) == Estimate(4.0)
    assert difference(odd, around(1.0, 0.0, 2.0), 0.95) == Estimate(-4.0)


def test_two_values_that_claim_to_be_certain_prove_nothing():
    assert difference(around(1.0, 1.0, 1.0), around(5.0, 5.0, 5.0), 0.95) == Estimate(4.0)


def test_a_difference_beyond_the_doubles_is_unknown():
    assert difference(Metric(value=-1.5e308), Metric(value=1.5e308), 0.95) == Estimate(None)


def test_huge_and_tiny_numbers_are_tested_like_others():
    usual = difference(sampled(*SLEEP_2), sampled(*SLEEP_1), 0.95)

    for exponent in (1000, -1000):
        shifted = [sampled(*(math.ldexp(each, exponent) for each in side)) for side in (SLEEP_2, SLEEP_1)]
        found = difference(*shifted, 0.95)
        assert found.p_value == pytest.approx(usual.p_value)
        assert bounds(found) == pytest.approx([math.ldexp(bound, exponent) for bound in bounds(usual)])


def test_samples_around_nothing_are_tested_in_silence():
    found = difference(sampled(1.0, -1.0, 5e-309), sampled(2.0, 3.0), 0.95)

    assert found.p_value == pytest.approx(stats.ttest_ind([1, -1, 0], [2, 3], equal_var=False).pvalue)


finite = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, 1.0, 1.7e308, -1.7e308, 5e-324]
)
confidences = st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True)


@st.composite
def metrics(draw: st.DrawFn) -> Metric:
    samples = tuple(draw(st.lists(finite, max_size=5)))
    value = float(np.mean(np.asarray(samples) / len(samples)) * len(samples)) if samples else draw(finite)
    lower, upper = sorted([draw(finite), draw(finite)])
    interval = Interval(lower, upper, draw(confidences)) if draw(st.booleans()) else None
    return Metric(value=value, samples=samples, interval=interval)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(metrics(), metrics(), confidences)
def test_no_number_is_ever_nan_or_infinite(a, b, confidence):
    found = difference(a, b, confidence)

    numbers = [found.value, found.p_value, *(bounds(found) if found.interval else ())]
    assert all(math.isfinite(number) for number in numbers if number is not None)
    assert found.p_value is None or 0 <= found.p_value <= 1
    assert found.interval is None or found.interval.lower <= found.interval.upper


def coverage(pairs: list[tuple[Metric, Metric]], truth: float) -> tuple[float, float]:
    """Shares of intervals that hold the truth, and of p-values at most 0.05."""
    found = [difference(a, b, 0.95) for a, b in pairs]
    held = [lower <= truth <= upper for lower, upper in map(bounds, found)]
    return float(np.mean(held)), float(np.mean([each.p_value <= 0.05 for each in found]))


def test_samples_of_unlike_spread_and_number_are_covered_as_often_as_promised():
    random = np.random.default_rng(20080715)
    pairs = [(sampled(*random.normal(0, 3, 8)), sampled(*random.normal(0, 1, 25))) for _ in range(1500)]

    held, rejected = coverage(pairs, truth=0.0)

    # Three standard errors of a share of 0.95 over 1500 runs are 0.017. Student's test rejects 0.23 of these.
    assert held == pytest.approx(0.95, abs=0.017)
    assert rejected == pytest.approx(0.05, abs=0.017)


@pytest.mark.parametrize(("p", "n", "least"), [((0.5, 0.5), (20, 20), 0.94), ((0.6, 0.9), (20, 40), 0.93)])
def test_rates_are_covered_as_often_as_promised(p, n, least):
    random = np.random.default_rng(20080716)
    pairs = [tuple(wilson(random.binomial(n[i], p[i]), n[i]) for i in (0, 1)) for _ in range(3000)]

    held, rejected = coverage(pairs, truth=p[1] - p[0])

    assert least <= held <= 0.98
    assert p[0] != p[1] or rejected <= 0.06


def test_samples_against_an_interval_are_covered_as_often_as_promised():
    random = np.random.default_rng(20080717)
    pairs = []
    for _ in range(1500):
        estimate = random.normal(0, 0.5)
        half = 0.5 * NormalDist().inv_cdf(0.975)
        pairs.append((around(estimate, estimate - half, estimate + half), sampled(*random.normal(1, 2, 12))))

    assert coverage(pairs, truth=1.0)[0] == pytest.approx(0.95, abs=0.017)


def test_importing_it_does_not_import_scipy():
    program = (
        "import sys, neuroweaver.registry.cards.card; sys.exit(bool({'scipy', 'numpy'} & sys.modules.keys()))"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
