from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroweaver.experiment.domain.allocation import (
    BUCKETS,
    Spans,
    allocate,
    complement,
    counts,
    merged,
    moved_share,
    reserve,
    size,
)

weights = st.lists(st.integers(0, 1000), min_size=2, max_size=8).filter(any)


def shares(numbers: list[int]) -> dict[str, float]:
    return {f"v{index}": number / sum(numbers) for index, number in enumerate(numbers)}


def test_a_third_each_leaves_no_bucket_over():
    assert sorted(counts({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}).values()) == [333_333, 333_333, 333_334]


def test_a_variant_of_weight_0_gets_nobody():
    assert allocate({"a": 1.0, "b": 0.0}) == {"a": ((0, BUCKETS),), "b": ()}


def test_34_33_33_to_50_25_25_moves_16_percent():
    before = allocate({"a": 0.34, "b": 0.33, "c": 0.33})
    after = allocate({"a": 0.5, "b": 0.25, "c": 0.25}, [before])
    assert moved_share(before, after) == 0.16
    assert after["b"] == ((340_000, 590_000),)


def test_4_to_5_equal_arms_moves_20_percent():
    before = allocate(dict.fromkeys("abcd", 0.25))
    after = allocate(dict.fromkeys("abcde", 0.2), [before])
    assert moved_share(before, after) == 0.2


@settings(max_examples=200, derandomize=True, deadline=None)
@given(weights, st.data())
def test_every_bucket_has_one_variant_and_only_the_difference_moves(first, data):
    second = data.draw(st.lists(st.integers(0, 1000), min_size=len(first), max_size=8).filter(any))
    before = allocate(shares(first))
    after = allocate(shares(second), [before])
    for allocated, numbers in ((before, first), (after, second)):
        spans = [span for each in allocated.values() for span in each]
        assert size(spans) == BUCKETS
        assert complement(spans) == ()
        for variant, share in shares(numbers).items():
            assert abs(size(allocated[variant]) - share * BUCKETS) < 1 + 1e-6
            assert allocated[variant] == merged(allocated[variant])
    grown = sum(max(0, size(after[v]) - size(before.get(v, ()))) for v in after)
    assert moved_share(before, after) == pytest.approx(grown / BUCKETS, abs=1e-12)


def phases(*weights: dict[str, float]) -> list[dict[str, Spans]]:
    """The allocations of phases with these weights, one after the other."""
    history: list[dict[str, Spans]] = []
    for each in weights:
        history.append(dict(allocate(each, history)))
    return history


def test_changing_weights_there_and_back_gives_everybody_their_variant_back():
    thirds = {"a": 0.34, "b": 0.33, "c": 0.33}
    first, second, third = phases(thirds, {"a": 0.33, "b": 0.34, "c": 0.33}, thirds)
    assert moved_share(first, second) == moved_share(second, third) == 0.01
    assert third == first


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.integers(2, 6), st.data())
def test_weights_that_any_earlier_phase_had_give_its_ranges_back(arms, data):
    numbers = st.lists(st.integers(0, 20), min_size=arms, max_size=arms).filter(any)
    history = phases(*map(shares, data.draw(st.lists(numbers, min_size=1, max_size=6))))
    undone = data.draw(st.sampled_from(history))
    again = allocate({variant: size(spans) / BUCKETS for variant, spans in undone.items()}, history)
    assert again == undone


def test_half_way_back_those_return_who_had_left():
    first, second, third = phases(
        {"a": 0.4, "b": 0.3, "c": 0.3}, {"a": 0.2, "b": 0.5, "c": 0.3}, {"a": 0.3, "b": 0.3, "c": 0.4}
    )
    assert first["b"] == third["b"]
    assert moved_share(second, third) == pytest.approx(0.2)
    assert moved_share(first, third) == pytest.approx(0.1)


def test_a_layer_hands_out_what_is_free():
    first = reserve(0.5, [])
    second = reserve(0.3, first)
    assert (first, second) == (((0, 500_000),), ((500_000, 800_000),))
    assert reserve(0.3, [*first, *second]) is None
    assert reserve(0.6, second) == ((0, 500_000), (800_000, 900_000))
