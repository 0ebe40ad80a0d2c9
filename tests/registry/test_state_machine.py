"""Random sequences of calls: every answer, every refusal and every event agrees with a model in plain Python.

Through a real gRPC server, each example over an empty database of its own.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from neuroweaver.v1 import registry_pb2 as pb
from registry.agreement import ALIASES, STATES, Both
from registry.oracle import RANGES, Number
from registry.worlds import World, world

STEPS = 100

model_ids = st.sampled_from("aaaaaab")
aliases = st.sampled_from(ALIASES)
levels = st.sampled_from(pb.BumpLevel.values()[1:])
labels = st.sampled_from(("", "beta", "rc"))
tags = st.dictionaries(st.sampled_from(("team", "site")), st.sampled_from(("x", "y")))
numbers = st.builds(
    lambda core, label: Number(*core) if not label else Number(*core).candidate(label),
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 1)),
    labels,
)
# Which of the versions there are, by turns; sometimes one that is not there.
picks = st.integers(0, 20)
# An etag: left out, right, or wrong.
marks = st.sampled_from(("", "current", "current", "other"))
# Where an alias is expected: anywhere, where it is, elsewhere, nowhere.
places = st.sampled_from(("", "current", "current", "other", "gone"))
selectors = st.sampled_from(("latest", *(f"@{alias}" for alias in ALIASES), *RANGES))
states = st.sampled_from(pb.VersionState.values()[1:])
metrics = st.sampled_from(("loss", "score"))
terms = st.lists(
    st.sampled_from(
        (*(f"range={text}" for text in RANGES), *STATES, "tags.team=x", "tags.team=y", "tags.site=x")
    ),
    max_size=3,
)


# What callers do, how often of a hundred times, and with what.
CALLS: dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]] = {
    "register": (2, {"model_id": model_ids, "tags": tags, "allow_existing": st.booleans()}),
    "update_model": (
        5,
        {
            "model_id": model_ids,
            "tags": tags,
            "paths": st.sets(st.sampled_from(("tags", "description")), min_size=1),
            "mark": marks,
        },
    ),
    # The other one is left, else there would soon be none to go on with.
    "delete_model": (2, {"model_id": st.just("b")}),
    "undelete_model": (1, {"model_id": model_ids}),
    "undelete_version": (5, {"model_id": model_ids, "pick": picks, "mark": marks}),
    "create": (
        8,
        {
            "model_id": model_ids,
            "number": st.none() | numbers,
            "level": st.sampled_from(pb.BumpLevel.values()),
            "parent": st.none() | picks,
            "has_file": st.sampled_from((True, True, False)),
            "state": st.sampled_from((0, 0, 0, *pb.VersionState.values())),
            "tags": tags,
        },
    ),
    "bump": (10, {"model_id": model_ids, "level": levels, "label": labels, "base": st.none() | picks}),
    "rollback": (8, {"model_id": model_ids, "pick": picks, "dry_run": st.sampled_from((False, False, True))}),
    "move": (5, {"model_id": model_ids, "pick": picks, "state": states, "mark": marks}),
    "move_on": (10, {"model_id": model_ids, "pick": picks, "choice": picks}),
    "measure": (3, {"model_id": model_ids, "pick": picks, "name": metrics, "value": picks}),
    "delete_version": (10, {"model_id": model_ids, "pick": picks, "mark": marks}),
    "set_alias": (
        6,
        {
            "model_id": model_ids,
            "alias": aliases,
            "pick": picks,
            "mark": places,
            "is_protected": st.sampled_from((None, None, True, False)),
        },
    ),
    "promote": (8, {"model_id": model_ids, "alias": aliases, "pick": picks}),
    "delete_alias": (5, {"model_id": model_ids, "alias": aliases, "mark": places}),
    "resolve": (3, {"model_id": model_ids, "alias": aliases, "pick": st.none() | picks}),
    "get": (4, {"model_id": model_ids, "selector": selectors | picks}),
    "list_versions": (
        4,
        {
            "model_id": model_ids,
            "terms": terms,
            "order_by": st.sampled_from(("", "version", "create_time desc")),
            "size": st.integers(1, 4),
            "show_deleted": st.booleans(),
        },
    ),
    "turn_a_page": (3, {"model_id": model_ids}),
    "retry": (4, {"pick": st.integers(0, 60), "is_same": st.sampled_from((True, True, False))}),
}
names = st.sampled_from([name for name, (weight, _) in CALLS.items() for _ in range(weight)])
calls = names.flatmap(lambda name: st.tuples(st.just(name), st.fixed_dictionaries(CALLS[name][1])))


class RegistryMachine(RuleBasedStateMachine):
    """One rule for all calls: of several, Hypothesis would leave out a random part in each example."""

    world: ClassVar[World]

    @initialize()
    def begin(self) -> None:
        self.both = Both(self.world)
        self.both.begin()

    @rule(call=calls)
    def call(self, call: tuple[str, dict[str, Any]]) -> None:
        name, arguments = call
        getattr(self.both, name)(**arguments)

    @invariant()
    def the_watch_tells_what_happened(self) -> None:
        self.both.the_watch_tells_what_happened()

    @invariant()
    def the_latest_is_the_highest(self) -> None:
        self.both.the_latest_is_the_highest()

    def teardown(self) -> None:
        try:
            self.both.everything_agrees()
        finally:
            self.both.close()


def explore(world: World, examples: int, steps: int = STEPS, *, is_thorough: bool = False) -> None:
    """Raises what disagrees.

    is_thorough: other sequences at each call; one that fails is made as short as it can be, for minutes.
    """
    run_state_machine_as_test(
        type("Machine", (RegistryMachine,), {"world": world}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=not is_thorough,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink] if is_thorough else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 8), ("postgresql", 5)])
def test_every_answer_agrees_with_the_model(request: pytest.FixtureRequest, kind: str, examples: int):
    url = request.getfixturevalue("postgres_server") if kind == "postgresql" else ""
    with world(url) as opened:
        explore(opened, examples)
