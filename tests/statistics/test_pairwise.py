from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from neuroweaver.statistics import confidence_sequence, fixed, pairwise
from neuroweaver.statistics.estimate import Bound
from neuroweaver.statistics.pairwise import Judgements


def test_a_judgement_missing_in_one_order_enters_nothing():
    judgements = Judgements(missing=3)

    assert judgements.win_rate is None
    assert pairwise.interval(judgements, 0.95) is None
    assert pairwise.always_valid_interval(judgements, 0.95, 100) is None
    assert pairwise.effect(judgements) is None
    assert pairwise.p_value(judgements) == 1.0


def test_a_tie_counts_half():
    assert Judgements(wins=3, ties=4, losses=1).win_rate == 0.625


def test_judgements_add_up():
    assert Judgements(1, 2, 3, 1, 5) + Judgements(1, 0, 1, 0, 1) == Judgements(2, 2, 4, 1, 6)


@pytest.mark.parametrize(
    ("wins", "losses", "count", "lower", "upper"),
    [(1, 7, 21, -0.517, -0.026), (6, 16, 161, -0.124, -0.005)],
)
def test_intervals_are_tangos(wins, losses, count, lower, upper):
    """Fagerland, Lydersen & Laake, Statistical Analysis of Contingency Tables, ch. 8 (R package contingencytables):
    airway hyper-responsiveness before and after stem cell transplantation (Bentur et al. 2009), complete response
    before and after consolidation therapy (Cavo et al. 2012). A difference of shares is 2 win rates - 1.
    """
    interval = pairwise.interval(Judgements(wins, count - wins - losses, losses), 0.95)

    assert 2 * interval.lower - 1 == pytest.approx(lower, abs=5e-4)
    assert 2 * interval.upper - 1 == pytest.approx(upper, abs=5e-4)


def test_p_value_is_mcnemars():
    """R documentation of mcnemar.test, without correction: 150 against 86, chi-squared 17.356, p = 3.099e-05."""
    assert pairwise.p_value(Judgements(wins=150, ties=944 + 570 - 150 - 86, losses=86)) == pytest.approx(
        stats.chi2.sf((150 - 86) ** 2 / 236, 1)
    )
    assert pairwise.p_value(Judgements(wins=150, losses=86)) == pytest.approx(3.1e-5, rel=0.01)


def test_the_interval_excludes_one_half_together_with_the_p_value():
    for wins in range(31):
        judgements = Judgements(wins, 10, 30 - wins)
        interval, p = pairwise.interval(judgements, 0.95), pairwise.p_value(judgements)

        assert (p < 0.05) == (interval.lower > 0.5 or interval.upper < 0.5)


def test_ties_alone_are_no_certainty():
    interval = pairwise.interval(Judgements(ties=100), 0.95)

    assert (interval.lower, interval.upper) == pytest.approx((0.4815, 0.5185), abs=1e-4)


def test_wins_alone_reach_up_to_one():
    interval = pairwise.interval(Judgements(wins=20), 0.95)

    assert interval.upper == pytest.approx(1.0)
    assert 0.8 < interval.lower < 0.95


def test_one_sided_p_values_meet_the_ends_of_the_interval():
    judgements = Judgements(40, 25, 20)
    interval = pairwise.interval(judgements, 0.95)

    assert pairwise.p_one_sided(judgements, interval.lower - 0.5) == pytest.approx(0.025)
    assert pairwise.p_one_sided(judgements, interval.upper - 0.5, above=False) == pytest.approx(0.025)


def test_coverage_over_all_outcomes():
    """Not simulated: every pair of wins and losses of 60 prompts, weighted by its chance."""
    count, win, loss = 60, 0.35, 0.2
    truth, covered = 0.5 + (win - loss) / 2, 0.0
    for wins in range(count + 1):
        for losses in range(count - wins + 1):
            chance = stats.multinomial.pmf(
                [wins, losses, count - wins - losses], count, [win, loss, 1 - win - loss]
            )
            if chance > 1e-6:
                interval = pairwise.interval(Judgements(wins, count - wins - losses, losses), 0.95)
                covered += chance * (interval.lower <= truth <= interval.upper)

    assert 0.94 < covered < 0.96


@pytest.mark.parametrize(("win", "loss"), [(0.3, 0.3), (0.05, 0.05), (0.5, 0.5)])
def test_a_hundred_looks_find_nothing_where_there_is_nothing(win, loss):
    """From 20 prompts to 1,000."""
    generator = np.random.default_rng(1)
    runs = 4000
    steps = np.diff(np.concatenate(([0], np.linspace(20, 1000, 100).astype(int))))
    counts = generator.multinomial(steps[:, None], [win, loss, 1 - win - loss], (100, runs)).cumsum(axis=0)
    n = counts.sum(axis=2)
    won, lost = ((counts[..., i] + 1) / (n + 2) for i in (0, 1))
    z = (counts[..., 0] - counts[..., 1]) / (2 * n) / np.sqrt((won + lost - (won - lost) ** 2) / (4 * n))
    p = confidence_sequence.p_value(z, confidence_sequence.mixing(n, 200, 0.05))

    judgements = Judgements(*(int(c) for c in counts[50, 7, [0, 2, 1]]))
    assert confidence_sequence.infer(pairwise.effect(judgements), 0.95, 200).p_value == pytest.approx(
        p[50, 7]
    )
    assert (p < 0.05).any(axis=0).mean() < 0.05
    assert (np.abs(z) > 1.96).any(axis=0).mean() > 0.1


def test_the_always_valid_interval_is_wider_and_stays_within_zero_and_one():
    judgements = Judgements(58, 1, 1)

    narrow, wide = pairwise.interval(judgements, 0.95), pairwise.always_valid_interval(judgements, 0.95, 60)

    assert wide.lower < narrow.lower
    assert wide.upper == 1.0


def test_the_effect_can_be_tested_against_a_margin():
    found = pairwise.effect(Judgements(60, 30, 10))

    assert found.absolute == 0.25
    assert found.relative is None
    assert fixed.p_one_sided(found, Bound(0.1)) < 0.01
    assert confidence_sequence.p_one_sided(found, 0.95, 100, Bound(0.1)) < 0.05
