"""The checker of histories: what it must find, and what it must let pass."""

from __future__ import annotations

import random
from collections.abc import Hashable
from itertools import permutations
from math import inf

import pytest

from linearizability import Impossible, Operation, State, not_linearizable


def register(state: State, call: Hashable, answer: Hashable) -> State:
    """A register: ("write", value) and ("read",)."""
    match call:
        case ("write", value):
            return value
        case _ if answer == state:
            return state
    raise Impossible


def write(value: int, begun: float, ended: float = inf, key: str = "x") -> Operation:
    return Operation(key, ("write", value), None, begun, ended)


def read(value: int, begun: float, ended: float, key: str = "x") -> Operation:
    return Operation(key, ("read",), value, begun, ended)


@pytest.mark.parametrize(
    "history",
    [
        [],
        [write(1, 0, 1), read(1, 2, 3)],
        # While a write is under way, both values can be read, in this order.
        [write(1, 0, 9), read(0, 1, 2), read(1, 3, 4)],
        # Nobody knows whether the write was done: it may be seen later, or never.
        [write(1, 0), read(0, 1, 2), read(1, 3, 4)],
        [write(1, 0), read(0, 5, 6)],
        # Two writes at once come in either order.
        [write(1, 0, 9), write(2, 0, 9), read(2, 10, 11), read(2, 12, 13)],
        [write(1, 0, 9), write(2, 0, 9), read(1, 10, 11)],
        # Each object has an order of its own.
        [write(1, 0, 1, "x"), read(0, 2, 3, "y")],
    ],
)
def test_histories_that_an_order_explains(history: list[Operation]):
    assert not_linearizable(history, register, 0) == []


@pytest.mark.parametrize(
    "history",
    [
        # A lost write, and a read of what was overwritten.
        [write(1, 0, 1), read(0, 2, 3)],
        [write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)],
        # The value of a write that is under way goes away again.
        [write(1, 0, 9), read(1, 1, 2), read(0, 3, 4)],
        [write(1, 0), read(1, 1, 2), read(0, 3, 4)],
        # Two readers see two writes in different orders.
        [write(1, 0, 9), write(2, 0, 9), read(1, 10, 11), read(2, 12, 13)],
        # A value from nowhere.
        [read(7, 0, 1)],
    ],
)
def test_histories_that_no_order_explains(history: list[Operation]):
    assert not_linearizable(history, register, 0) == ["x"]


@pytest.mark.parametrize("seed", range(200))
def test_it_agrees_with_trying_every_order(seed: int):
    drawn = random.Random(seed)
    history = []
    for _ in range(drawn.randint(1, 6)):
        begun = drawn.uniform(0, 10)
        ended = begun + drawn.uniform(0, 5)
        value = drawn.randint(0, 2)
        history.append(read(value, begun, ended) if drawn.random() < 0.5 else write(value, begun, ended))
    assert (not_linearizable(history, register, 0) == []) == any(map(is_explained, permutations(history)))


def is_explained(order: tuple[Operation, ...]) -> bool:
    state: State = 0
    for number, operation in enumerate(order):
        if any(later.ended < operation.begun for later in order[number:]):
            return False
        try:
            state = register(state, operation.call, operation.answer)
        except Impossible:
            return False
    return True


def test_a_long_history_of_many_callers_is_searched_in_little_work():
    drawn = random.Random(1)
    history, value, clock = [], 0, 0.0
    for number in range(5_000):
        clock += 1
        begun, ended = clock - drawn.uniform(0, 4), clock + drawn.uniform(0, 4)
        if drawn.random() < 0.5:
            value = number
            history.append(write(value, begun, ended))
        else:
            history.append(read(value, begun, ended))
    assert not_linearizable(history, register, 0) == []
    stale = read(-1, clock + 10, clock + 11)
    assert not_linearizable([*history, stale], register, 0) == ["x"]
