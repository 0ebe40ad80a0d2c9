from __future__ import annotations

import math

import numpy as np
import pytest

from neuroweaver.statistics import confidence_sequence, fixed, power
from neuroweaver.statistics.baseline import MeanBaseline, ProportionBaseline, RatioBaseline
from neuroweaver.statistics.crossing import LOOKS, crossing, growth
from neuroweaver.statistics.effect import Effect
from neuroweaver.statistics.estimate import Bound
from neuroweaver.statistics.power import Design
from samples import means, ratios, shares, within

FIXED = {"is_always_valid": False}


def test_power_of_a_t_test_is_that_of_r():
    """R documentation of power.t.test: n = 20, delta = 1, sd = 1 has 0.8689528; power 0.90 needs n = 22.02110."""
    design = Design(MeanBaseline(0.0, 1.0), **FIXED)

    assert power.power_of(design, 1.0, 20) == pytest.approx(0.8689528, abs=5e-8)
    assert power.units_needed(design, 1.0, 0.9) == pytest.approx(22.02110, abs=5e-5)


def test_power_of_two_proportions_is_that_of_r():
    """R documentation of power.prop.test: n = 50, 0.50 against 0.75 has 0.7401659; power 0.90 needs n = 76.7."""
    design = Design(ProportionBaseline(0.5), **FIXED)

    assert power.power_of(design, 0.25, 50) == pytest.approx(0.7401659, abs=5e-6)
    assert power.units_needed(design, 0.25, 0.9) == pytest.approx(76.7, abs=0.05)


@pytest.mark.parametrize(("effect_size", "units"), [(0.2, 394), (0.5, 64), (0.8, 26)])
def test_sample_sizes_are_those_of_cohens_table(effect_size, units):
    """Cohen 1992, Psychological Bulletin 112:155, table 2: two means, level 0.05, power 0.80; 393 there for 0.2."""
    needed = power.units_needed(Design(MeanBaseline(0.0, 1.0), **FIXED), effect_size, 0.8)

    assert math.ceil(needed) == units


def test_the_three_questions_agree_with_each_other():
    for design in (
        Design(MeanBaseline(10.0, 3.0)),
        Design(MeanBaseline(10.0, 3.0), weights=(0.7, 0.2, 0.1), comparisons=2, **FIXED),
        Design(ProportionBaseline(0.2), is_non_inferiority=True),
        Design(ProportionBaseline(0.2), confidence=0.9),
        Design(RatioBaseline(5.0, 3.0, 4.0, 2.0, 0.5), covariate_correlation=0.6),
    ):
        units = power.units_needed(design, 0.05, 0.9)

        assert power.power_of(design, 0.05, units) == pytest.approx(0.9, abs=1e-6)
        assert power.detectable_effect(design, units, 0.9) == pytest.approx(0.05, rel=1e-6)


def test_a_covariate_saves_its_squared_correlation():
    plain = power.units_needed(Design(MeanBaseline(0.0, 1.0)), 0.1, 0.8)
    adjusted = power.units_needed(Design(MeanBaseline(0.0, 1.0), covariate_correlation=-0.6), 0.1, 0.8)

    assert adjusted / plain == pytest.approx(0.64)


def test_a_ratio_has_the_variance_of_the_delta_method():
    """R = 2, var = (9 + 4 * 1 - 2 * 2 * 0.5 * 3 * 1) / 25 = 7 / 25."""
    assert RatioBaseline(10.0, 3.0, 5.0, 1.0, 0.5).variance() == pytest.approx(7 / 25)
    assert RatioBaseline(10.0, 3.0, 5.0, 1.0, 0.5).value == 2.0


def test_a_ratio_that_never_varies_cannot_be_planned():
    with pytest.raises(ValueError, match="does not vary"):
        power.units_needed(Design(RatioBaseline(10.0, 2.0, 5.0, 1.0, 1.0)), 0.1, 0.8)


def test_a_share_moves_the_way_that_needs_more_units():
    assert ProportionBaseline(0.1).shifted(0.05) == pytest.approx(0.15)
    assert ProportionBaseline(0.9).shifted(0.05) == pytest.approx(0.85)
    assert ProportionBaseline(0.9).shifted(0.2) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="cannot move"):
        ProportionBaseline(0.5).shifted(0.5)


def test_always_valid_tests_need_more_units():
    fixed_units = power.units_needed(Design(MeanBaseline(0.0, 1.0), **FIXED), 0.05, 0.8)
    always_valid = power.units_needed(Design(MeanBaseline(0.0, 1.0)), 0.05, 0.8)

    assert 1.6 < always_valid / fixed_units < 1.75


def test_without_effect_the_sequence_is_crossed_by_the_planned_sample_less_often_than_its_level():
    for alpha in (0.2, 0.05, 0.001):
        for one_sided in (True, False):
            assert 0 < crossing(alpha, one_sided=one_sided).power(0.0) < alpha


def test_crossing_agrees_with_simulated_paths():
    generator = np.random.default_rng(1)
    paths = generator.normal(3.0 / LOOKS, math.sqrt(1 / LOOKS), (20_000, LOOKS)).cumsum(axis=1)
    times = np.arange(1, LOOKS + 1) / LOOKS
    x = confidence_sequence.mixing(times, 1.0, 0.05)
    outside = np.abs(paths) > confidence_sequence.boundary(x, 0.05) * np.sqrt(times)

    found = crossing(0.05, one_sided=False)

    for look in (25, 50, 100):
        crossed = outside[:, :look].any(axis=1).sum()
        assert within(int(crossed), 20_000, found.power(3.0, look))


def ever_shown(p_values, level: float = 0.05) -> float:
    return float((p_values < level).any(axis=0).mean())


def test_always_valid_plan_of_a_share_holds_in_simulation():
    plan = power.plan(Design(ProportionBaseline(0.1)), effect=0.02)
    units = plan.units[0]
    generator = np.random.default_rng(2)
    steps = np.diff(np.linspace(0, units, LOOKS + 1).astype(int))
    a, b = (generator.binomial(steps[:, None], rate, (LOOKS, 4000)).cumsum(axis=0) for rate in (0.1, 0.12))
    n = steps.cumsum()[:, None]
    spread = sum((c + 1) / (n + 2) * (1 - (c + 1) / (n + 2)) / n for c in (a, b))
    z = (b - a) / n / np.sqrt(spread)

    found = confidence_sequence.infer(
        shares((int(a[60, 3]), int(n[60, 0])), (int(b[60, 3]), int(n[60, 0]))), 0.95, units
    )
    p = confidence_sequence.p_value(z, confidence_sequence.mixing(n, units, 0.05))
    assert found.p_value == pytest.approx(p[60, 3])
    assert ever_shown(p) == pytest.approx(0.8, abs=0.02)


def test_always_valid_plan_of_non_inferiority_holds_in_simulation():
    plan = power.plan(
        Design(MeanBaseline(5.0, 2.0), is_non_inferiority=True, weights=(0.75, 0.25)), effect=0.3
    )
    generator = np.random.default_rng(3)
    n, m = (np.diff(np.linspace(0, units, LOOKS + 1)) for units in plan.units)
    sums = [
        generator.normal(0, 2 * np.sqrt(steps)[:, None], (LOOKS, 4000)).cumsum(axis=0) for steps in (n, m)
    ]
    n, m = n.cumsum()[:, None], m.cumsum()[:, None]
    z = (sums[1] / m - sums[0] / n + 0.3) / (2 * np.sqrt(1 / n + 1 / m))
    units = 2 / (1 / n + 1 / m)

    p = confidence_sequence.p_value_one_sided(z, confidence_sequence.mixing(units, units[-1, 0], 0.1))

    assert ever_shown(p) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("is_non_inferiority", [False, True])
def test_fixed_plan_of_a_share_holds_in_simulation(is_non_inferiority):
    design = Design(
        ProportionBaseline(0.3), is_non_inferiority=is_non_inferiority, weights=(0.6, 0.4), **FIXED
    )
    control, treatment = power.plan(design, effect=0.06).units
    generator = np.random.default_rng(4)
    found = 0
    for _ in range(3000):
        a = generator.binomial(control, 0.3)
        b = generator.binomial(treatment, 0.3 if is_non_inferiority else 0.36)
        effect = shares((a, control), (b, treatment))
        if is_non_inferiority:
            found += fixed.p_one_sided(effect, Bound(-0.06)) < 0.05
        else:
            found += fixed.infer(effect, 0.95).p_value < 0.05

    assert found / 3000 == pytest.approx(0.8, abs=0.025)


def test_fixed_plan_of_a_ratio_holds_in_simulation():
    generator = np.random.default_rng(5)

    def units(count: int, cost: float):
        requests = 1 + generator.poisson(generator.gamma(2.0, 2.0, count))
        return np.stack((generator.gamma(requests, cost), requests), axis=1)

    many = units(400_000, 1.0)
    (cost, requests), spread = many.mean(axis=0), np.cov(many.T)
    correlation = spread[0, 1] / math.sqrt(spread[0, 0] * spread[1, 1])
    baseline = RatioBaseline(cost, math.sqrt(spread[0, 0]), requests, math.sqrt(spread[1, 1]), correlation)
    control, treatment = power.plan(Design(baseline, **FIXED), effect=0.05).units
    shifted = 0
    for _ in range(1500):
        rows = units(treatment, 1.0)
        rows[:, 0] += 0.05 * rows[:, 1]
        shifted += fixed.infer(ratios(units(control, 1.0), rows), 0.95).p_value < 0.05

    assert shifted / 1500 == pytest.approx(0.8, abs=0.035)


def test_a_plan_names_every_arm_and_the_days():
    design = Design(MeanBaseline(10.0, 2.0), weights=(0.5, 0.3, 0.2), comparisons=2)

    plan = power.plan(design, effect=0.2, units_per_day=1000)

    control = plan.units[0]
    assert plan.units[1:] == (math.ceil(control * 0.6), math.ceil(control * 0.4))
    assert plan.days == pytest.approx(control / 0.5 / 1000)
    assert plan.relative_effect == pytest.approx(0.02)
    assert plan.power == pytest.approx(0.8, abs=1e-3)
    assert "2 comparisons" in plan.basis


def test_the_curve_falls_to_what_was_planned():
    for design in (Design(MeanBaseline(10.0, 2.0)), Design(ProportionBaseline(0.1), **FIXED)):
        plan = power.plan(design, effect=0.02, units_per_day=50)

        effects = [point.detectable_effect for point in plan.curve]
        assert effects == sorted(effects, reverse=True)
        assert len(plan.curve) == 20
        assert plan.curve[-1].units == plan.units[0]
        assert plan.curve[-1].days == pytest.approx(plan.days)
        assert effects[-1] == pytest.approx(0.02, rel=1e-2)


def test_units_alone_give_the_effect_and_both_give_the_power():
    design = Design(MeanBaseline(0.0, 1.0))

    found = power.plan(design, units=5000)
    both = power.plan(design, units=5000, effect=found.effect)

    assert found.relative_effect is None
    assert found.days is None
    assert both.power == pytest.approx(0.8, abs=1e-6)


def test_a_handful_of_units_is_planned_too():
    plan = power.plan(Design(MeanBaseline(10.0, 2.0), **FIXED), units=2)

    assert plan.effect > 5
    assert all(math.isfinite(point.detectable_effect) for point in plan.curve)


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ValueError, match="needs an effect"):
        power.plan(Design(MeanBaseline(0.0, 1.0)))
    with pytest.raises(ValueError, match="too small"):
        power.plan(Design(MeanBaseline(0.0, 1.0)), effect=1e-9)
    with pytest.raises(ValueError, match="too small"):
        power.plan(Design(MeanBaseline(0.0, 1.0), **FIXED), effect=1e-9)
    with pytest.raises(ValueError, match="cannot move"):
        power.plan(Design(ProportionBaseline(0.5)), effect=0.6)
    with pytest.raises(ValueError, match="no effect"):
        power.plan(Design(ProportionBaseline(0.5)), units=3)
    with pytest.raises(ValueError, match="never found"):
        power.plan(Design(MeanBaseline(0.0, 1.0)), effect=0.0)


def test_what_an_experiment_can_detect_now_is_what_its_interval_and_power_ask_for():
    generator = np.random.default_rng(6)
    found = means(generator.normal(5, 1, 5000), generator.normal(5, 1, 5000))

    once = power.detectable_now(found, 0.95, None)
    ever = power.detectable_now(found, 0.95, 5000)

    assert once == pytest.approx((1.95996 + 0.84162) * found.std_error, rel=1e-3)
    assert ever == pytest.approx((3.0351 + 0.84162) * found.std_error, rel=1e-3)
    assert power.detectable_now(means([1.0] * 3, [1.0] * 3), 0.95, None) is None


def test_growth_is_where_the_boundary_meets_the_effect():
    def seen(z: float) -> Effect:
        return Effect(z, 1.0, 10.0, 0.5, -0.5, 1000, 1998)

    times = growth(seen(1.5), 0.05, 1000)

    z = 1.5 * math.sqrt(times)
    assert z == pytest.approx(
        float(confidence_sequence.boundary(confidence_sequence.mixing(1000 * times, 1000, 0.05), 0.05))
    )
    assert growth(seen(-1.5), 0.05, 1000) == times
    assert growth(seen(1.5), 0.05, 1000, above=True) < times
    assert growth(seen(1.5), 0.05, 1000, Bound(0.5), above=True) > times
    assert growth(seen(5.0), 0.05, 1000) == 1.0
    for found in (
        growth(seen(0.0), 0.05, 1000),
        growth(seen(1e-3), 0.05, 1000),
        growth(seen(1.5), 0.05, 1000, above=False),
    ):
        assert found is None
    assert growth(means([1.0] * 3, [1.0] * 3), 0.05, 1000) is None
