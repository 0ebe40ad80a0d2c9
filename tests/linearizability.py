"""Whether a history of concurrent calls could have happened one after the other, each between its begin and its end.

The search is that of Wing and Gong with Lowe's cache of configurations (G. Lowe, "Testing for linearizability",
Concurrency and Computation 29(4), 2017, section 3), object by object: a history is linearizable exactly if that of
each object is (Herlihy and Wing, "Linearizability", ACM TOPLAS 12(3), 1990, theorem 1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from math import inf

State = Hashable
Step = Callable[[State, Hashable, Hashable], State]


class Impossible(Exception):
    """Raised by a model: this call cannot have this answer in this state."""


@dataclass(frozen=True)
class Operation:
    """One call as its caller saw it. ended: in any unit that `begun` has; inf: the caller never learnt the answer."""

    key: Hashable
    call: Hashable
    answer: Hashable
    begun: float
    ended: float = inf


def not_linearizable(operations: Iterable[Operation], step: Step, initial: State) -> list[Hashable]:
    """The keys whose history no order explains.

    step: the object's state after a call with that answer; raises Impossible. An answer that nobody learnt is None,
    and the call may have happened at any later time, or not at all.
    """
    histories: dict[Hashable, list[Operation]] = defaultdict(list)
    for operation in operations:
        histories[operation.key].append(operation)
    return [key for key, history in histories.items() if not _is_linearizable(history, step, initial)]


def _is_linearizable(history: list[Operation], step: Step, initial: State) -> bool:
    history = sorted(history, key=lambda operation: operation.begun)
    required = sum(1 << number for number, operation in enumerate(history) if operation.ended < inf)
    seen: set[tuple[int, State]] = set()
    open_configurations: list[tuple[int, State]] = [(0, initial)]
    while open_configurations:
        done, state = open_configurations.pop()
        if done & required == required:
            return True
        for number in _next(history, done):
            try:
                after = step(state, history[number].call, history[number].answer)
            except Impossible:
                continue
            configuration = (done | 1 << number, after)
            if configuration not in seen:
                seen.add(configuration)
                open_configurations.append(configuration)
    return False


def _next(history: list[Operation], done: int) -> list[int]:
    """The calls that may come next: those begun before the first end among the calls still to come, latest end first."""
    candidates: list[int] = []
    first_end = inf
    number = _first_open(done)
    while number < len(history) and history[number].begun <= first_end:
        if not done >> number & 1:
            candidates.append(number)
            first_end = min(first_end, history[number].ended)
        number += 1
    # The search takes the last: what ended first most likely happened first.
    return sorted(candidates, key=lambda each: -history[each].ended)


def _first_open(done: int) -> int:
    """The number of the lowest bit that is not set."""
    return (~done & (done + 1)).bit_length() - 1
