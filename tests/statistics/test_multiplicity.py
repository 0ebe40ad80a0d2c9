from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from neuroweaver.statistics.multiplicity import Correction, adjusted, benjamini_hochberg, holm

# Benjamini & Hochberg 1995, JRSS B 57:289, sec. 4: fifteen comparisons of a trial on myocardial infarction.
TRIAL = [
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0,
]  # fmt: skip


def test_holm_rejects_three_and_benjamini_hochberg_four_of_the_trial():
    """As the paper finds: Bonferroni's and Holm's way reject the first three at 0.05, theirs the first four."""
    assert [p <= 0.05 for p in holm(TRIAL)] == [True] * 3 + [False] * 12
    assert [p <= 0.05 for p in benjamini_hochberg(TRIAL)] == [True] * 4 + [False] * 11


def test_holm_by_hand():
    """p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.03, 0.01, 0.05, 0.02, 0.04]) == pytest.approx([0.09, 0.05, 0.09, 0.08, 0.09])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_benjamini_hochberg_by_hand():
    """p.adjust(c(0.01, 0.04, 0.03, 0.005), "BH") in R."""
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])


def test_no_adjusted_p_value_exceeds_one():
    assert max(holm([0.9, 0.8])) == max(benjamini_hochberg([0.9, 1.0])) == 1.0


def test_a_comparison_without_p_value_keeps_its_place():
    assert adjusted([0.02, None], Correction.HOLM) == [0.04, None]
    assert adjusted([0.02, None], Correction.NONE) == [0.02, None]
    assert adjusted([], Correction.BENJAMINI_HOCHBERG) == []


def test_benjamini_hochberg_agrees_with_scipy():
    generator = np.random.default_rng(1)
    for count in (1, 2, 30):
        p_values = generator.beta(0.3, 2, count)
        expected = stats.false_discovery_control(p_values, method="bh")
        assert benjamini_hochberg(p_values.tolist()) == pytest.approx(expected.tolist())


def test_holm_bounds_the_chance_of_any_false_positive():
    """Twenty comparisons, five of them with an effect, correlated by a common control."""
    generator = np.random.default_rng(2)
    false = 0
    for _ in range(4000):
        z = (generator.normal(size=20) + generator.normal()) / np.sqrt(2)
        z[:5] += 4
        p_values = [float(p) for p in 2 * (1 - _normal_cdf(np.abs(z)))]
        false += min(holm(p_values)[5:]) < 0.05

    assert false / 4000 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)
    assert false > 0


def _normal_cdf(z):
    from scipy.special import ndtr

    return ndtr(z)
