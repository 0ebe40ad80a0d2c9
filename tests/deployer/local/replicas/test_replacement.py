from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroweaver.deployer.local.replicas.replacement import Steps, There, next_steps
from neuroweaver.v1 import deployer_pb2 as pb

SURGE, RECREATE, SWAP = (
    pb.REPLACEMENT_MODE_SURGE,
    pb.REPLACEMENT_MODE_RECREATE,
    pb.REPLACEMENT_MODE_SWAP_ADAPTER,
)


def ready(number: int, target: str = "old", **fields) -> There:
    return There(number, target, is_ready=True, **fields)


def broken(number: int, target: str = "old") -> There:
    return There(number, target, is_ready=False)


@pytest.mark.parametrize(
    ("desired", "there", "mode", "limits", "steps"),
    [
        ({"new": 2}, [], SURGE, (1, 0), Steps({"new": 2})),
        ({"new": 2}, [ready(1, "new"), ready(2, "new")], SURGE, (1, 0), Steps()),
        ({"new": 1}, [ready(1, "new"), broken(2, "new")], SURGE, (1, 0), Steps(stops=(2,))),
        ({"new": 1}, [ready(1, "new"), ready(2, "new")], SURGE, (1, 0), Steps(stops=(2,))),
        # One more at a time, and an old one only goes when a new one is ready.
        ({"new": 2}, [ready(1), ready(2)], SURGE, (1, 0), Steps({"new": 1})),
        ({"new": 2}, [ready(1), ready(2), broken(3, "new")], SURGE, (1, 0), Steps()),
        ({"new": 2}, [ready(1), ready(2), ready(3, "new")], SURGE, (1, 0), Steps(stops=(1,))),
        ({"new": 2}, [ready(1), ready(2)], SURGE, (0, 1), Steps(stops=(1,))),
        ({"new": 2}, [ready(1), ready(2)], SURGE, (2, 0), Steps({"new": 2})),
        # What is broken serves nobody and blocks no fix.
        ({"new": 1}, [broken(1)], SURGE, (1, 0), Steps({"new": 1}, (1,))),
        ({"new": 0}, [ready(1)], SURGE, (1, 0), Steps(stops=(1,))),
        ({"new": 1}, [ready(1)], RECREATE, (1, 0), Steps(stops=(1,))),
        ({"new": 1}, [ready(1, is_leaving=True)], RECREATE, (1, 0), Steps()),
        ({"new": 1}, [], RECREATE, (1, 0), Steps({"new": 1})),
        ({"new": 2}, [ready(1, can_swap=True), ready(2, can_swap=True)], SWAP, (1, 0), Steps(swaps=((1, "new"), (2, "new")))),
        ({"new": 1}, [ready(1, can_swap=True), ready(2, can_swap=True)], SWAP, (1, 1), Steps(stops=(2,), swaps=((1, "new"),))),
        ({"new": 1}, [ready(1)], SWAP, (1, 1), Steps({"new": 1}, (1,))),
        # Candidate and stable are both wanted: neither is touched.
        ({"old": 2, "new": 1}, [ready(1), ready(2)], SURGE, (1, 0), Steps({"new": 1})),
    ],
)  # fmt: skip
def test_the_next_steps(desired, there, mode, limits, steps):
    surge, unavailable = limits
    assert next_steps(desired, there, mode, max_surge=surge, max_unavailable=unavailable) == steps


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 5),
    st.integers(0, 5),
    st.sampled_from([(1, 0), (0, 1), (2, 1), (3, 0)]),
    st.sampled_from([SURGE, RECREATE, SWAP]),
    st.booleans(),
)
def test_step_by_step_it_gets_there_within_its_limits(old, new, limits, mode, can_swap):
    surge, unavailable = limits
    there = [ready(number, can_swap=can_swap) for number in range(old)]
    fleet = {each.number: each for each in there}
    following = old
    for _ in range(50):
        steps = next_steps(
            {"new": new}, list(fleet.values()), mode, max_surge=surge, max_unavailable=unavailable
        )
        if steps.is_nothing:
            break
        for number in steps.stops:
            del fleet[number]
        if mode == SURGE:
            assert sum(each.is_ready for each in fleet.values()) >= min(old, new - unavailable)
        for number, target in steps.swaps:
            fleet[number] = ready(number, target)
        for target, count in steps.starts.items():
            for _ in range(count):
                following += 1
                fleet[following] = ready(following, target)
        if mode == SURGE:
            assert len(fleet) <= max(old, new + surge)
    assert [each.target for each in fleet.values()] == ["new"] * new
