from __future__ import annotations

from collections import Counter

import pytest

from neuroweaver.deployer.routing.shares import Affinity, at_random, by_hash

CONVERSATIONS = [f"conversation-{number}" for number in range(20_000)]


def test_nothing_answers_without_weight():
    assert at_random({}) is None
    assert at_random({1: 0}) is None
    assert by_hash("a", {1: 0, 2: 0}) is None
    assert Affinity().revision("a", {}) is None


@pytest.mark.parametrize("weights", [{1: 90, 2: 10}, {1: 50, 2: 30, 3: 20}])
def test_conversations_are_spread_by_weight(weights: dict[int, float]):
    counted = Counter(by_hash(each, weights) for each in CONVERSATIONS)
    for revision, weight in weights.items():
        expected = len(CONVERSATIONS) * weight / 100
        deviation = (expected * (1 - weight / 100)) ** 0.5
        assert abs(counted[revision] - expected) < 5 * deviation


def test_requests_are_spread_by_weight():
    counted = Counter(at_random({1: 3, 2: 1, 3: 0}) for _ in range(20_000))
    assert set(counted) == {1, 2}
    # A standard deviation is 61.
    assert abs(counted[2] - 5000) < 5 * 62


def test_when_weights_change_conversations_move_only_towards_what_gained():
    before = {each: by_hash(each, {1: 90, 2: 10}) for each in CONVERSATIONS}
    after = {each: by_hash(each, {1: 70, 2: 30}) for each in CONVERSATIONS}
    moved = {(before[each], after[each]) for each in CONVERSATIONS if before[each] != after[each]}
    assert moved == {(1, 2)}
    share = sum(before[each] != after[each] for each in CONVERSATIONS) / len(CONVERSATIONS)
    assert share == pytest.approx(0.2, abs=0.02)


def test_a_conversation_stays_where_it_began_while_that_has_any_weight():
    affinity = Affinity()
    begun = {each: affinity.revision(each, {1: 90, 2: 10}) for each in CONVERSATIONS[:1000]}
    assert set(begun.values()) == {1, 2}
    assert {each: affinity.revision(each, {1: 1, 2: 99}) for each in begun} == begun
    assert {affinity.revision(each, {2: 100}) for each in begun} == {2}
    # Where it had to move to, it stays.
    assert {affinity.revision(each, {1: 99, 2: 1}) for each in begun} == {2}


def test_a_revision_that_cannot_serve_for_a_while_gets_its_conversations_back():
    affinity = Affinity()
    begun = [each for each in CONVERSATIONS[:100] if affinity.revision(each, {1: 50, 2: 50}) == 1]
    assert begun
    assert {affinity.revision(each, {2: 50}, held={1, 2}) for each in begun} == {2}
    assert {affinity.revision(each, {1: 50, 2: 50}, held={1, 2}) for each in begun} == {1}


def test_the_oldest_conversations_are_forgotten():
    affinity = Affinity(capacity=2)
    weights = {1: 50, 2: 50}
    first = affinity.revision("a", {1: 100})
    affinity.revision("b", weights)
    affinity.revision("c", weights)
    assert first == 1
    assert affinity.revision("a", {1: 1e-9, 2: 100}) == 2
