"""Whatever the units' values, no answer is NaN, infinite, or a chance outside of 0 to 1."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroweaver.statistics import bayesian, confidence_sequence, crossing, fixed, power, quantile
from neuroweaver.statistics.arm import Kind, Sample, arms
from neuroweaver.statistics.effect import Effect, effect
from neuroweaver.statistics.estimate import Bound
from neuroweaver.statistics.moments import LARGEST, Moments
from neuroweaver.statistics.phases import combined

VALUES = st.one_of(
    st.floats(-LARGEST, LARGEST),
    st.floats(-1e3, 1e3),
    st.integers(-30, 29).map(lambda power: 3.0 * 10.0**power),
    st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e-29, 1e-300, 5e-324, 0.1, LARGEST, -LARGEST]),
)


def numbers(found):
    if isinstance(found, float):
        yield found
    elif isinstance(found, tuple):
        for part in found:
            yield from numbers(part)
    elif is_dataclass(found):
        for field in fields(found):
            yield from numbers(getattr(found, field.name))


def check(found) -> None:
    assert all(math.isfinite(number) for number in numbers(found)), found


def check_chance(p: float | None) -> None:
    assert p is None or 0 <= p <= 1


def check_effect(found: Effect) -> None:
    check(found)
    check(found.watched)
    bounds = Bound(0.0), Bound(1.5), Bound(-0.2, is_relative=True)
    for inference in (fixed.infer(found, 0.95), confidence_sequence.infer(found, 0.95, 1000)):
        check(inference)
        if inference is not None:
            check_chance(inference.p_value)
            assert inference.absolute.lower <= inference.absolute.upper
            assert inference.relative is None or inference.relative.lower <= inference.relative.upper
    for bound in bounds:
        for p in (
            fixed.p_one_sided(found, bound),
            confidence_sequence.p_one_sided(found, 0.95, 1000, bound, above=False),
        ):
            check_chance(p)
    check(power.detectable_now(found, 0.95, 1000))
    check(crossing.growth(found, 0.05, 1000))
    for prior in (bayesian.Prior(), bayesian.Prior(0.0, 0.1)):
        posterior = bayesian.posterior(found, 0.95, prior, higher_is_better=True)
        check(posterior)
        assert posterior is None or 0 <= posterior.chance_to_beat_control <= 1


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), kind=st.sampled_from([Kind.MEAN, Kind.RATIO]), covariates=st.integers(0, 2))
def test_arms_of_any_values(data, kind, covariates):
    columns = kind.outcomes + covariates
    row = st.lists(VALUES, min_size=columns, max_size=columns)
    samples = [
        Sample(Moments.of(np.array(rows) if rows else np.empty((0, columns))))
        for rows in data.draw(st.lists(st.lists(row, max_size=30), min_size=2, max_size=2))
    ]

    found = effect(*arms(kind, samples))

    if found is not None:
        check_effect(found)
        check_effect(combined([found, found]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    counts=st.tuples(st.integers(2, 10**9), st.integers(2, 10**9)),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_proportions_of_any_counts(counts, shares):
    samples = []
    for units, share in zip(counts, shares, strict=True):
        successes = float(round(units * share))
        samples.append(Sample(Moments(units, 1, (successes, successes), (0.0, 0.0))))

    found = effect(*arms(Kind.PROPORTION, samples))

    assert found is not None
    check_effect(found)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(values=st.lists(VALUES, min_size=20, max_size=80), level=st.sampled_from([0.01, 0.5, 0.99]))
def test_quantiles_of_any_values(values, level):
    half = len(values) // 2
    pair = [
        quantile.of_events(part, np.ones(len(part)), range(len(part)), len(part), level)
        for part in (values[:half], values[half:])
    ]
    if pair[0] is None or pair[1] is None:
        return
    for inference in (quantile.infer(*pair, 0.95), quantile.infer_always_valid(*pair, 0.95, 100)):
        check(inference)
    check_chance(quantile.p_one_sided(*pair, Bound(0.1, is_relative=True)))
    if (normal := quantile.effect(*pair)) is not None:
        check_effect(normal)


@pytest.mark.parametrize("units", [10**6, 10**9, 10**12])
def test_numbers_of_units_of_any_size(units):
    moments = Moments(units, 1, (units * 0.5, units * 0.5), (0.0, 0.0))

    found = effect(*arms(Kind.MEAN, [Sample(moments), Sample(moments)]))

    check_effect(found)
