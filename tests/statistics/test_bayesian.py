from __future__ import annotations

import numpy as np
import pytest

from neuroweaver.statistics.bayesian import Prior, posterior
from neuroweaver.statistics.effect import Effect
from samples import means

FLAT = Prior()


def known(absolute: float, std_error: float, baseline: float = 10.0) -> Effect:
    return Effect(absolute, std_error**2, baseline, 0.01**2, -(0.01**2), 1000, 1998)


def test_one_standard_error_above_beats_the_control_with_84_percent():
    """Phi(1) = 0.8413; the expected loss is 0.0833 standard errors (unit normal loss function at 1)."""
    found = posterior(known(0.5, 0.5), 0.95, FLAT, higher_is_better=True)

    assert found.chance_to_beat_control == pytest.approx(0.841345, abs=1e-6)
    assert found.expected_loss == pytest.approx(0.5 * 0.083315, abs=1e-6)


def test_lower_is_better_turns_both_round():
    up = posterior(known(0.5, 0.5), 0.95, FLAT, higher_is_better=True)
    down = posterior(known(0.5, 0.5), 0.95, FLAT, higher_is_better=False)

    assert up.chance_to_beat_control + down.chance_to_beat_control == pytest.approx(1.0)
    assert down.expected_loss == pytest.approx(up.expected_loss + 0.5)


def test_no_effect_loses_half_the_mean_absolute_deviation():
    assert posterior(known(0.0, 1.0), 0.95, FLAT, higher_is_better=True).expected_loss == pytest.approx(
        0.398942, abs=1e-6
    )


def test_a_normal_prior_is_averaged_by_precision():
    """Relative effect 0.05 with error 0.05, prior 0 with deviation 0.05: mean 0.025, deviation 0.05 / sqrt(2)."""
    found = posterior(
        Effect(0.5, 0.25, 10.0, 0.0, 0.0, 1000, 1998), 0.95, Prior(0.0, 0.05), higher_is_better=True
    )

    assert found.relative.lower == pytest.approx(0.025 - 1.959964 * 0.05 / np.sqrt(2), abs=1e-6)
    assert found.relative.upper == pytest.approx(0.025 + 1.959964 * 0.05 / np.sqrt(2), abs=1e-6)
    assert found.chance_to_beat_control == pytest.approx(0.760250, abs=1e-6)


def test_a_wide_prior_says_what_a_flat_one_says():
    generator = np.random.default_rng(1)
    found = means(generator.normal(10, 2, 500), generator.normal(10.1, 2, 500))

    flat = posterior(found, 0.95, FLAT, higher_is_better=True)
    wide = posterior(found, 0.95, Prior(0.0, 100.0), higher_is_better=True)

    assert wide.chance_to_beat_control == pytest.approx(flat.chance_to_beat_control, abs=2e-3)
    assert wide.expected_loss == pytest.approx(flat.expected_loss, rel=0.05)
    assert wide.relative.upper == pytest.approx(flat.relative.upper, rel=1e-3)


def test_closed_form_agrees_with_draws_from_the_posterior():
    generator = np.random.default_rng(2)
    draws = generator.normal(-0.3, 0.5, 1_000_000)

    found = posterior(known(-0.3, 0.5), 0.95, FLAT, higher_is_better=True)

    assert found.chance_to_beat_control == pytest.approx((draws > 0).mean(), abs=2e-3)
    assert found.expected_loss == pytest.approx(np.maximum(-draws, 0).mean(), rel=1e-2)


def test_a_negative_control_keeps_its_direction():
    assert (
        posterior(known(0.5, 0.1, -10.0), 0.95, Prior(0.0, 0.5), higher_is_better=True).chance_to_beat_control
        > 0.99
    )


def test_without_a_relative_effect_a_flat_prior_still_speaks_and_another_does_not():
    zero = Effect(0.5, 0.25, 0.0, 0.1, -0.1, 1000, 1998)

    flat = posterior(zero, 0.95, FLAT, higher_is_better=True)

    assert flat.relative is None
    assert flat.chance_to_beat_control > 0.8
    assert posterior(zero, 0.95, Prior(0.0, 0.1), higher_is_better=True) is None


def test_a_constant_has_no_posterior():
    assert posterior(means([1.0] * 3, [1.0] * 3), 0.95, FLAT, higher_is_better=True) is None


def test_extreme_evidence_stays_finite():
    found = posterior(known(1e6, 1e-3), 0.95, FLAT, higher_is_better=True)

    assert found.chance_to_beat_control == 1.0
    assert found.expected_loss == 0.0
