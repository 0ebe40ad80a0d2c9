from __future__ import annotations

import math

import numpy as np
import pytest

from neuroweaver.statistics.thompson import Belief, chances_to_be_best, weights


def test_of_two_variants_the_chance_is_that_of_their_difference():
    chances = chances_to_be_best([Belief(500, 1.0, 0.3), Belief(500, 1.5, 0.4)], higher_is_better=True)

    assert chances[1] == pytest.approx(0.5 * math.erfc(-0.5 / 0.5 / math.sqrt(2)), abs=1e-6)
    assert sum(chances) == pytest.approx(1.0)


def test_equal_variants_have_equal_chances():
    assert chances_to_be_best([Belief(500, 1.0, 0.3)] * 5, higher_is_better=False) == pytest.approx([0.2] * 5)


def test_chances_agree_with_draws():
    generator = np.random.default_rng(1)
    beliefs = [Belief(500, v, e) for v, e in [(0.0, 1.0), (0.5, 0.2), (0.7, 0.5), (-1.0, 3.0)]]
    draws = generator.normal([b.value for b in beliefs], [b.std_error for b in beliefs], (1_000_000, 4))

    for higher_is_better, best in ((True, draws.argmax(axis=1)), (False, draws.argmin(axis=1))):
        chances = chances_to_be_best(beliefs, higher_is_better=higher_is_better)
        assert chances == pytest.approx(np.bincount(best, minlength=4) / 1e6, abs=2e-3)


def test_no_variant_falls_below_the_floor_and_the_others_keep_their_proportions():
    beliefs = [Belief(500, 1.0, 0.1), Belief(500, 1.05, 0.1), Belief(500, 0.0, 0.1), Belief(500, -1.0, 0.1)]

    found = weights(beliefs, 0.05, higher_is_better=True)
    chances = chances_to_be_best(beliefs, higher_is_better=True)

    assert found[2:] == pytest.approx([0.05, 0.05])
    assert found[0] / found[1] == pytest.approx(chances[0] / chances[1])
    assert sum(found) == pytest.approx(1.0)


def test_a_floor_that_leaves_nothing_free_means_equal_weights():
    assert weights([Belief(500, 1.0, 0.1), Belief(500, 9.0, 0.1)], 0.5, higher_is_better=True) == [0.5, 0.5]


def test_a_floor_that_cannot_be_kept_is_refused():
    with pytest.raises(ValueError, match="3 variants"):
        weights([Belief(500, 1.0, 0.1)] * 3, 0.4, higher_is_better=True)


def test_weights_are_equal_until_every_variant_has_units():
    assert weights([Belief(5000, 9.0, 0.1), Belief(99, 1.0, 0.1)], 0.0, higher_is_better=True) == [0.5, 0.5]


def test_variants_without_spread_are_ranked_by_their_value():
    chances = chances_to_be_best([Belief(500, 1.0, 0.0), Belief(500, 2.0, 0.0)], higher_is_better=True)

    assert chances == pytest.approx([0.0, 1.0])


def test_the_same_beliefs_always_give_the_same_weights():
    beliefs = [Belief(500, 1.0, 0.1), Belief(500, 1.1, 0.1), Belief(500, 1.2, 0.3)]

    assert weights(beliefs, 0.05, higher_is_better=True) == weights(beliefs, 0.05, higher_is_better=True)
