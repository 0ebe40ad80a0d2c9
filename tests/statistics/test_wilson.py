from __future__ import annotations

import math

import pytest
from scipy import stats

from neuroweaver.statistics.wilson import wilson_interval, wilson_limits


@pytest.mark.parametrize(
    ("successes", "units", "lower", "upper"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_limits_are_those_of_newcombe(successes, units, lower, upper):
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    assert wilson_interval(successes, units) == pytest.approx((lower, upper), abs=5e-5)


def test_limits_agree_with_scipy():
    for successes, units, confidence in [(3, 10, 0.9), (0, 7, 0.99), (7, 7, 0.95), (500, 1234, 0.999)]:
        expected = stats.binomtest(successes, units).proportion_ci(confidence, method="wilson")
        assert wilson_interval(successes, units, confidence=confidence) == pytest.approx(
            (expected.low, expected.high)
        )


def test_without_units_every_share_is_possible():
    assert wilson_interval(0, 0) == wilson_limits(3, 10, math.inf) == (0.0, 1.0)
