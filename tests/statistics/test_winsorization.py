from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroweaver.statistics import sequential
from neuroweaver.statistics.winsorization import Caps, calibrated


def test_values_beyond_the_caps_count_as_the_caps():
    assert Caps(0.0, 10.0).apply([-5.0, 3.0, 12.0]).tolist() == [0.0, 3.0, 10.0]
    assert Caps(upper=10.0).apply([-5.0, 12.0]).tolist() == [-5.0, 10.0]
    assert Caps().apply([-5.0, 12.0]).tolist() == [-5.0, 12.0]


def test_caps_are_values_at_the_quantiles_of_the_units():
    assert calibrated(np.arange(1000.0), 0.01, 0.99) == Caps(9.0, 990.0)


def test_without_units_there_are_no_caps():
    assert calibrated([], 0.01, 0.99) == Caps()


def test_a_cap_that_would_leave_nothing_to_measure_is_left_out():
    rare = np.zeros(1000)
    rare[:5] = 50.0

    assert calibrated(rare, None, 0.99) == Caps()
    assert calibrated(-rare, 0.01, None) == Caps()
    assert calibrated(np.full(1000, 3.0), 0.01, 0.99) == Caps()


def test_a_cap_that_would_cut_most_buyers_is_left_out():
    values = np.zeros(1000)
    values[:15] = np.arange(1.0, 16.0)
    assert calibrated(values, None, 0.99) == Caps()
    values[15:25] = np.arange(16.0, 26.0)
    assert calibrated(values, None, 0.99).upper == 16.0


def test_a_mass_point_is_no_cap():
    # Of units that have bought one thing so far, or nothing.
    assert calibrated(np.repeat([0.0, 1.0], [700, 300]), None, 0.99) == Caps()
    # The next value beyond it is.
    few = np.repeat([0.0, 1.0, 2.0, 3.0, 400.0], [741, 222, 33, 3, 1])
    assert calibrated(few, None, 0.99) == Caps(upper=3.0)
    assert calibrated(-few, 0.01, None) == Caps(lower=-3.0)


def test_a_value_that_few_units_share_can_be_a_cap():
    counts = np.random.default_rng(1).poisson(14.0, 10_000)
    assert calibrated(counts, None, 0.99).upper == pytest.approx(np.quantile(counts, 0.99), abs=1)


def test_values_below_zero_are_capped_on_both_sides():
    caps = calibrated(np.random.default_rng(2).standard_t(2, 100_000), 0.01, 0.99)
    assert (caps.lower, caps.upper) == (pytest.approx(-6.96, abs=0.35), pytest.approx(6.96, abs=0.35))


def test_each_side_has_a_bulk_of_its_own():
    """Mostly nothing, many refunds, few purchases: the many say nothing about the few."""
    refunds, purchases = -np.arange(1.0, 501.0), np.arange(1.0, 16.0)
    values = np.concatenate((refunds, np.zeros(485), purchases))
    # The tenth largest of 1,000 would be a cap that cuts nine of fifteen purchases.
    assert calibrated(values, 0.01, 0.99) == Caps(-491.0, None)
    assert calibrated(-values, 0.01, 0.99) == Caps(None, 491.0)
    # Of 25 purchases it cuts less than half.
    values[500:510] = np.arange(16.0, 26.0)
    assert calibrated(values, 0.01, 0.99) == Caps(-491.0, 16.0)


def test_a_cap_beyond_a_mass_point_is_not_the_least_of_a_rare_side():
    values = np.concatenate((-np.arange(1.0, 501.0), np.zeros(495), [50.0, 60.0, 70.0, 80.0, 90.0]))
    assert calibrated(values, None, 0.99) == Caps()


def test_a_rare_side_without_a_mass_point_keeps_its_bulk():
    bought = np.arange(20.0, 1005.0)
    # 15 refunds: the cap would be at the fifth smallest of them. 25: at the fifteenth, which cuts ten.
    assert calibrated(np.concatenate((bought, -np.arange(50.0, 65.0))), 0.01, None) == Caps()
    assert calibrated(np.concatenate((bought, -np.arange(50.0, 75.0))), 0.01, None) == Caps(lower=-64.0)
    # No more than a cap may cut: far-out units, which is what caps are for.
    assert calibrated(np.concatenate((bought, [-1e9] * 3)), 0.01, None).lower == 26.0


sizes = st.integers(-6, 6) | st.floats(-1e6, 1e6)
quantiles = st.none() | st.floats(0.01, 0.3)


@settings(max_examples=100, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=120), quantiles, quantiles)
def test_caps_keep_their_promises(values, low, high):
    values = np.array(values, np.float64)
    caps = calibrated(values, low, None if high is None else 1 - high)
    held = caps.apply(values)
    assert (np.diff(held[np.argsort(values)]) >= 0).all()
    assert (caps.apply(held) == held).all()
    lower = -np.inf if caps.lower is None else caps.lower
    upper = np.inf if caps.upper is None else caps.upper
    assert lower < upper
    inside = (values >= lower) & (values <= upper)
    assert (held[inside] == values[inside]).all()
    for share, cap, cut in ((low, caps.lower, values < lower), (high, caps.upper, values > upper)):
        if cap is not None:
            assert cap in values
            assert np.count_nonzero(cut) <= share * len(values)
            assert np.count_nonzero(values == cap) <= max(1.0, share * len(values) + 1e-9)
            # Of those with the sign of the cap most stay as they are.
            same = values[np.sign(values) == np.sign(cap)] if cap else values
            assert 2 * np.count_nonzero(cut & np.isin(values, same)) <= len(same)


def is_ever_found(generator, lift):
    """3,000 units over 3 weeks, a third of which buy in the weeks after, heavy-tailed; caps follow the data.

    A look each day from 500 units of each arm on, at 95 %.
    """
    units, total = 3000, np.zeros(3000)
    exposed = np.sort(generator.uniform(0, 21, units))
    arm = generator.integers(0, 2, units)
    unit = np.repeat(np.arange(units), (generator.random(units) < 1 / 3) * (1 + generator.poisson(2, units)))
    when = exposed[unit] + generator.exponential(5, len(unit))
    value = generator.lognormal(0, 1.5, len(unit)) * np.where(arm[unit] == 1, 1 + lift, 1.0)
    seen, caps = 0, Caps()
    for day in range(8, 29):
        n, is_in = np.searchsorted(exposed, day), when <= day
        total = np.bincount(unit[is_in], value[is_in], units)[:n]
        if n + is_in.sum() >= 1.25 * seen:
            seen, caps = n + is_in.sum(), calibrated(total, None, 0.99)
        control, treated = (caps.apply(total)[arm[:n] == each] for each in (0, 1))
        error = control.var(ddof=1) / len(control) + treated.var(ddof=1) / len(treated)
        x = sequential.mixing(2 / (1 / len(control) + 1 / len(treated)), 1000, 0.05)
        if sequential.p_value((treated.mean() - control.mean()) / np.sqrt(error), x) < 0.05:
            return True
    return False


def test_caps_that_follow_delayed_values_find_nothing_where_there_is_nothing():
    generator = np.random.default_rng(7)
    assert sum(is_ever_found(generator, 0.0) for _ in range(100)) <= 12  # 0.1 % of tests at 5 %
    assert sum(is_ever_found(generator, 1.0) for _ in range(20)) >= 18
