from __future__ import annotations

import numpy as np
import pytest

from neuroweaver.statistics import fixed
from neuroweaver.statistics.arm import Kind, Sample, arms
from neuroweaver.statistics.effect import effect
from neuroweaver.statistics.moments import Moments
from neuroweaver.statistics.phases import combined
from samples import within


def compared(kind: Kind, *samples: Sample):
    found = effect(*arms(kind, samples))
    assert found is not None
    return found


def correlated(generator, units: int, correlation: float, lift: float = 0.0):
    """Outcome and covariate of standard deviation 1."""
    before = generator.normal(0, 1, units)
    after = correlation * before + np.sqrt(1 - correlation**2) * generator.normal(0, 1, units)
    return np.stack((after + 10 + lift, before + 3), axis=1)


def test_the_adjusted_effect_is_that_of_a_regression_with_the_covariate():
    """Analysis of covariance: the coefficient of the treatment in y ~ treatment + x."""
    generator = np.random.default_rng(1)
    control, treatment = correlated(generator, 300, 0.7), correlated(generator, 200, 0.7, 0.5)

    found = compared(Kind.MEAN, Sample(Moments.of(control)), Sample(Moments.of(treatment)))

    rows = np.concatenate((control, treatment))
    assigned = np.repeat([0.0, 1.0], [300, 200])
    design = np.column_stack((np.ones(500), assigned, rows[:, 1]))
    coefficients, *_ = np.linalg.lstsq(design, rows[:, 0])
    assert found.absolute == pytest.approx(coefficients[1])
    residuals = rows[:, 0] - design @ coefficients
    assert found.variance == pytest.approx(residuals @ residuals / 497 * (1 / 300 + 1 / 200), rel=0.03)


def test_variance_falls_by_the_squared_correlation():
    """Deng et al. 2013, WSDM, sec. 3.2: var(adjusted) = var (1 - rho^2)."""
    generator = np.random.default_rng(2)
    samples = [Sample(Moments.of(correlated(generator, 20_000, 0.8))) for _ in range(2)]

    assert compared(Kind.MEAN, *samples).variance_reduction == pytest.approx(0.64, abs=0.01)


def test_a_covariate_that_explains_nothing_takes_nothing_out():
    generator = np.random.default_rng(3)
    samples = [Sample(Moments.of(correlated(generator, 5000, 0.0))) for _ in range(2)]

    assert 0 <= compared(Kind.MEAN, *samples).variance_reduction < 0.002


def test_a_covariate_that_never_varies_is_left_out():
    rows = np.random.default_rng(4).normal(0, 1, (400, 2))
    rows[:, 1] = 7.0
    with_constant = [Sample(Moments.of(rows[:200])), Sample(Moments.of(rows[200:]))]
    without = [Sample(Moments.of(rows[:200, :1])), Sample(Moments.of(rows[200:, :1]))]

    found, plain = compared(Kind.MEAN, *with_constant), compared(Kind.MEAN, *without)

    assert (found.absolute, found.variance) == pytest.approx((plain.absolute, plain.variance))
    assert found.variance_reduction is None


def test_units_without_a_covariate_take_the_mean_of_those_that_have_one():
    generator = np.random.default_rng(5)
    rows = [correlated(generator, 500, 0.7), correlated(generator, 400, 0.7, 0.3)]
    known = [500 - 120, 400 - 60]
    filled = [row.copy() for row in rows]
    mean = np.concatenate([row[:n, 1] for row, n in zip(rows, known, strict=True)]).mean()
    for row, n in zip(filled, known, strict=True):
        row[n:, 1] = mean

    found = compared(
        Kind.MEAN,
        *(Sample(Moments.of(r[:n]), Moments.of(r[n:, :1])) for r, n in zip(rows, known, strict=True)),
    )

    expected = compared(Kind.MEAN, *(Sample(Moments.of(row)) for row in filled))
    assert (found.absolute, found.variance) == pytest.approx((expected.absolute, expected.variance))


def test_no_unit_with_a_covariate_leaves_the_plain_effect():
    rows = np.random.default_rng(6).normal(0, 1, (2, 300))
    bare = [Sample(Moments.zero(2), Moments.of(row)) for row in rows]

    found = compared(Kind.MEAN, *bare)

    assert found.absolute == pytest.approx(rows[1].mean() - rows[0].mean())
    assert found.variance_reduction is None


def test_few_units_are_not_adjusted():
    generator = np.random.default_rng(7)
    rows = [correlated(generator, 20, 0.9) for _ in range(2)]

    found = compared(Kind.MEAN, *(Sample(Moments.of(row)) for row in rows))

    assert found.absolute == pytest.approx(rows[1][:, 0].mean() - rows[0][:, 0].mean())


def test_all_variants_share_one_slope():
    """A third variant of another slope changes how the first two are compared, the same for each pair."""
    generator = np.random.default_rng(8)
    samples = [Sample(Moments.of(correlated(generator, 400, rho))) for rho in (0.9, 0.9, -0.5)]

    first, second, third = arms(Kind.MEAN, samples)

    effects = effect(first, second).absolute, effect(second, third).absolute, effect(first, third).absolute
    assert effects[0] + effects[1] == pytest.approx(effects[2])


def test_the_value_shown_of_a_variant_is_not_adjusted():
    rows = correlated(np.random.default_rng(9), 500, 0.9)

    [arm] = arms(Kind.MEAN, [Sample(Moments.of(rows))])

    assert arm.value == pytest.approx(rows[:, 0].mean())
    assert arm.is_adjusted


def test_two_covariates_adjust_a_ratio():
    """Numerator and denominator from before the exposure, as a look-back gives them."""
    generator = np.random.default_rng(10)

    def units(count: int, cost: float):
        taste, pace = generator.gamma(4, 0.25, count), generator.gamma(2, 3, count)
        counts = 1 + generator.poisson(pace, (2, count))
        costs = generator.gamma(counts * taste * cost, 1.0)
        return np.stack((costs[1], counts[1], costs[0], counts[0]), axis=1)

    rows = [units(4000, 1.0), units(3000, 1.0)]
    adjusted = compared(Kind.RATIO, *(Sample(Moments.of(row)) for row in rows))
    plain = compared(Kind.RATIO, *(Sample(Moments.of(row[:, :2])) for row in rows))
    one = compared(Kind.RATIO, *(Sample(Moments.of(row[:, :3])) for row in rows))

    assert adjusted.variance < one.variance < plain.variance
    assert adjusted.variance_reduction > 0.2
    assert adjusted.baseline == plain.baseline


def test_a_covariate_given_twice_counts_once():
    rows = correlated(np.random.default_rng(11), 600, 0.6)
    twice = np.column_stack((rows, rows[:, 1]))

    once = compared(Kind.MEAN, Sample(Moments.of(rows[:300])), Sample(Moments.of(rows[300:])))
    found = compared(Kind.MEAN, Sample(Moments.of(twice[:300])), Sample(Moments.of(twice[300:])))

    assert (found.absolute, found.variance) == pytest.approx((once.absolute, once.variance))


def test_an_adjusted_proportion_keeps_its_regular_variance():
    generator = np.random.default_rng(12)
    propensity = generator.beta(1, 1, (2, 5000))
    happened = (generator.random((2, 5000)) < propensity).astype(float)
    rows = np.stack((happened, propensity), axis=-1)

    found = compared(Kind.PROPORTION, *(Sample(Moments.of(row)) for row in rows))
    never = compared(
        Kind.PROPORTION,
        *(Sample(Moments.of(np.stack((np.zeros(1000), row[:1000, 1]), axis=1))) for row in rows),
    )

    assert found.variance_reduction == pytest.approx(1 / 3, abs=0.03)
    assert found.proportions is None
    assert never.std_error == pytest.approx(np.sqrt(2 * (1 / 1002) * (1001 / 1002) / 1000))


def test_coverage_with_a_covariate_that_half_of_the_units_lack():
    generator = np.random.default_rng(13)
    absolute = relative = 0
    for _ in range(1500):
        rows = [correlated(generator, 400, 0.8), correlated(generator, 600, 0.8, 0.2)]
        found = compared(
            Kind.MEAN,
            *(Sample(Moments.of(r[: len(r) // 2]), Moments.of(r[len(r) // 2 :, :1])) for r in rows),
        )
        inference = fixed.infer(found, 0.95)
        absolute += inference.absolute.lower <= 0.2 <= inference.absolute.upper
        relative += inference.relative.lower <= 0.02 <= inference.relative.upper

    assert within(absolute, 1500)
    assert within(relative, 1500)


def test_phases_together_tell_what_the_covariate_took_out():
    generator = np.random.default_rng(14)
    effects = [
        compared(Kind.MEAN, *(Sample(Moments.of(correlated(generator, 2000, 0.8))) for _ in range(2)))
        for _ in range(3)
    ]

    assert combined(effects).variance_reduction == pytest.approx(0.64, abs=0.03)
