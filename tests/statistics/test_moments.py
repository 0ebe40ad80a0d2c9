from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from neuroweaver.statistics.moments import LARGEST, Moments, merged


def exact_m2(values) -> float:
    exact = [Fraction(float(value)) for value in values]
    return float(sum(v * v for v in exact) - sum(exact) ** 2 / len(exact))


def rows(seed: int, units: int = 1000, columns: int = 3):
    generator = np.random.default_rng(seed)
    return generator.normal(5, 2, (units, columns)) @ generator.normal(0, 1, (columns, columns))


def test_mean_variance_and_covariances_are_those_of_the_rows():
    values = rows(1)

    moments = Moments.of(values)

    assert moments.n == 1000
    assert [moments.mean(i) for i in range(3)] == pytest.approx(values.mean(axis=0), rel=1e-14)
    assert moments.variance(1) == pytest.approx(values[:, 1].var(ddof=1), rel=1e-13)
    assert moments.covariances() == pytest.approx(np.cov(values.T), rel=1e-12)


def test_a_single_column_may_be_given_flat():
    assert Moments.of([1.0, 2.0, 6.0]) == Moments.of([[1.0], [2.0], [6.0]])
    assert Moments.of([1.0, 2.0, 6.0]).m2() == 14.0


@pytest.mark.parametrize("units", [1, 2, 3, 5, 7, 8, 31, 1000])
def test_every_number_of_rows_is_summed_to_the_last_digit(units):
    values = np.random.default_rng(units).lognormal(0, 3, units)

    moments = Moments.of(values)

    assert moments.sum() == float(sum(Fraction(float(v)) for v in values))
    assert moments.m2() == pytest.approx(exact_m2(values), rel=1e-14)


def test_parts_merge_to_the_whole_in_any_order():
    values = rows(2)
    parts = [Moments.of(values[i : i + 70]) for i in range(0, 1000, 70)]

    forwards, backwards = merged(parts, 3), merged(parts[::-1], 3)

    assert forwards.covariances() == pytest.approx(Moments.of(values).covariances(), rel=1e-14)
    assert backwards.covariances() == pytest.approx(forwards.covariances(), rel=1e-14)
    assert forwards.n == 1000


def test_no_parts_are_no_units():
    assert merged([], 2) == Moments.zero(2) == Moments.of(np.empty((0, 2)))


def test_a_million_replacements_agree_with_a_recomputation_to_a_billionth():
    generator = np.random.default_rng(3)
    values = np.stack((generator.lognormal(3, 1.5, 20_000), generator.poisson(4, 20_000)), axis=1)
    moments = Moments.of(values)

    for _ in range(1000):
        changed = generator.choice(20_000, 1000, replace=False)
        new = values[changed] + np.stack((generator.lognormal(3, 1.5, 1000), np.ones(1000)), axis=1)
        moments += Moments.of(new) - Moments.of(values[changed])
        values[changed] = new

    assert moments.n == 20_000
    assert moments.covariances() == pytest.approx(np.cov(values.T), rel=1e-9)
    assert moments.m2() == pytest.approx(exact_m2(values[:, 0]), rel=1e-14)


def test_replacing_one_unit_at_a_time_drifts_no_more_than_replacing_many_at_once():
    generator = np.random.default_rng(4)
    values = generator.normal(1e6, 1.0, 200)
    moments = Moments.of(values)

    for _ in range(10_000):
        unit = generator.integers(200)
        new = values[unit] + generator.normal()
        moments = moments - Moments.of([values[unit]]) + Moments.of([new])
        values[unit] = new

    assert moments.m2() == pytest.approx(exact_m2(values), rel=1e-12)


def test_a_huge_value_that_passed_through_leaves_no_trace():
    values = np.random.default_rng(5).normal(0, 1, 1000)
    moments = Moments.of(values)

    for _ in range(1000):
        moments = moments + Moments.of([1e9]) - Moments.of([1e9])

    assert moments.n == 1000
    assert moments.m2() == pytest.approx(exact_m2(values), rel=1e-10)


def test_values_far_from_zero_keep_their_variance():
    values = np.random.default_rng(6).normal(1e8, 1.0, 5000)

    assert Moments.of(values).m2() == pytest.approx(exact_m2(values), rel=1e-12)


def test_equal_values_have_no_variance_even_if_they_differ_by_rounding():
    moments = Moments.of([0.1 + 0.2, 0.3, 0.3] * 100)

    assert moments.variance() == 0.0
    assert Moments.of([[0.3, 1.0], [0.3, 2.0]]).covariances()[0, 1] == 0.0


def test_a_difference_can_be_added_elsewhere():
    before, after = rows(7, 50), rows(8, 50)
    rest = rows(9, 100)

    change = Moments.of(after) - Moments.of(before)
    moments = Moments.of(np.concatenate((rest, before))) + change

    whole = np.concatenate((rest, after))
    assert (change.n, moments.n) == (0, 150)
    assert moments.covariances() == pytest.approx(np.cov(whole.T), rel=1e-12)


def test_floats_give_the_same_moments_back():
    moments = Moments.of(rows(10))

    assert Moments.from_floats(3, moments.to_floats()) == moments


def test_floats_of_another_number_of_columns_are_refused():
    with pytest.raises(ValueError, match="2 columns"):
        Moments.from_floats(2, Moments.of([1.0, 2.0]).to_floats())


def test_different_columns_do_not_add_up():
    with pytest.raises(ValueError, match="columns"):
        Moments.zero(1) + Moments.zero(2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2 * LARGEST])
def test_what_is_no_usable_number_is_refused(value):
    with pytest.raises(ValueError, match="not a number"):
        Moments.of([1.0, value])


def test_the_largest_values_stay_within_the_doubles():
    moments = Moments.of(np.array([[LARGEST, -LARGEST], [0.0, LARGEST]]))

    assert np.isfinite(moments.covariances()).all()


def test_constant_columns_can_be_added_to_units_that_lack_them():
    values = rows(11, 200, 2)

    moments = Moments.of(values).with_constants([3.25, -1.0])

    whole = np.column_stack((values, np.full(200, 3.25), np.full(200, -1.0)))
    assert moments.to_floats() == pytest.approx(Moments.of(whole).to_floats(), rel=1e-15, abs=1e-12)


def test_some_columns_are_the_moments_of_those_alone():
    values = rows(4, columns=4)
    for places in ([2], [1, 3], [3, 1], [0, 1, 2, 3]):
        assert Moments.of(values).chosen(places) == Moments.of(values[:, places])
