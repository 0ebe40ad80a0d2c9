from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import betaln, gammaln

from neuroweaver.statistics.sample_ratio import PhaseCounts, p_value


def test_p_value_is_one_over_the_mean_beta_binomial_bayes_factor():
    """Two arms: the Dirichlet prior is a Beta, whose Bayes factor is a quotient of Beta functions."""
    a, b = 420, 580
    factors = [
        math.exp(betaln(k / 2 + a, k / 2 + b) - betaln(k / 2, k / 2) + (a + b) * math.log(2))
        for k in (100, 10_000)
    ]

    assert p_value([PhaseCounts((0.5, 0.5), (a, b))]) == pytest.approx(2 / sum(factors))


def test_no_units_say_nothing():
    assert p_value([]) == 1.0
    assert p_value([PhaseCounts((0.5, 0.5), (0, 0))]) == 1.0


def test_a_p_value_never_rises_again():
    assert p_value([PhaseCounts((0.5, 0.5), (5000, 5000))], previous=0.003) == 0.003


def test_weights_need_not_sum_to_one():
    assert p_value([PhaseCounts((1, 3), (300, 700))]) == p_value([PhaseCounts((0.25, 0.75), (300, 700))])


def test_a_variant_of_weight_zero_takes_no_part():
    assert p_value([PhaseCounts((0.5, 0.5, 0.0), (400, 600, 0))]) == pytest.approx(
        p_value([PhaseCounts((0.5, 0.5), (400, 600))])
    )


def test_stragglers_in_a_variant_of_weight_zero_are_borne_with_and_more_are_not():
    assert p_value([PhaseCounts((0.5, 0.5, 0.0), (500, 500, 10))]) == 1.0
    assert p_value([PhaseCounts((0.5, 0.5, 0.0), (500, 500, 50))]) == 0.0


def test_phases_of_different_weights_are_judged_each_by_its_own():
    """Right in each phase, though the overall counts fit neither of the weights."""
    assert p_value([PhaseCounts((0.9, 0.1), (9000, 1000)), PhaseCounts((0.5, 0.5), (5000, 5000))]) == 1.0


def test_phases_that_are_wrong_the_same_way_add_up():
    phase = PhaseCounts((0.5, 0.5), (4800, 5200))

    assert p_value([phase, phase]) < p_value([phase]) ** 1.2


def test_a_lost_variant_is_found_within_a_hundred_units():
    assert p_value([PhaseCounts((0.5, 0.5), (80, 0))]) < 0.001


def test_millions_of_units_are_no_matter():
    units = 500_000_000

    assert p_value([PhaseCounts((0.5, 0.5), (units, units))]) == 1.0
    assert p_value([PhaseCounts((0.5, 0.5), (units - 200_000, units + 200_000))]) < 1e-6


def every_look(weights, counts):
    """The p-values of all looks and runs at once. counts: (looks, runs, variants)."""
    total = counts.sum(axis=-1)
    factors = []
    for k in (100, 10_000):
        prior = k * np.array(weights)
        parts = gammaln(prior + counts) - gammaln(prior) - counts * np.log(weights)
        factors.append(np.exp(gammaln(k) - gammaln(k + total) + parts.sum(axis=-1)))
    return 1 / np.maximum(1.0, np.mean(factors, axis=0))


@pytest.mark.parametrize("weights", [(0.95, 0.05), (0.5, 0.5), (0.97, 0.01, 0.01, 0.01)])
def test_false_alarms_over_a_hundred_looks_stay_below_the_level(weights):
    """At 5 %, where they can be counted, and at the default of 0.1 %; the first look is at ten units."""
    generator = np.random.default_rng(1)
    steps = np.diff(np.concatenate(([0], np.geomspace(10, 50_000, 100).astype(int))))
    counts = generator.multinomial(steps[:, None], weights, (100, 4000)).cumsum(axis=0)

    found = every_look(weights, counts)

    for look, run in [(0, 0), (40, 3), (99, 7)]:
        assert p_value([PhaseCounts(weights, counts[look, run].tolist())]) == pytest.approx(found[look, run])
    assert 0 < (found < 0.05).any(axis=0).mean() < 0.05
    assert (found < 0.001).any(axis=0).mean() <= 0.001


def test_phases_of_changing_weights_give_no_more_false_alarms():
    generator = np.random.default_rng(2)
    runs, alarms = 2000, 0
    for _ in range(runs):
        phases = []
        for share in (0.5, 0.6, 0.7, 0.8, 0.9):
            phases.append(
                PhaseCounts((share, 1 - share), generator.multinomial(400, (share, 1 - share)).tolist())
            )
            if p_value(phases) < 0.05:
                alarms += 1
                break

    assert alarms / runs < 0.05


def test_a_split_that_is_off_by_two_points_is_found():
    generator = np.random.default_rng(3)
    found = [
        p_value([PhaseCounts((0.5, 0.5), generator.multinomial(40_000, (0.48, 0.52)))]) for _ in range(200)
    ]

    assert np.mean(np.array(found) < 0.001) > 0.99
