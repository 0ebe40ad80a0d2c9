"""Callers that work on the same aliases, versions and batches, and whether an order of their calls explains it all."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
from semver import Version

from experiment.faults import SIZE, batch
from linearizability import Impossible, Operation, State, not_linearizable
from neuroweaver.mesh.wire import status
from neuroweaver.v1 import registry_pb2
from registry.faults import Told

MODEL = "contended"
ALIASES = ("blue", "green")
NOWHERE = "-"
MOVED_MEANWHILE = "moved meanwhile"
RECORDED = "recorded"


@dataclass
class History:
    told: Told = field(default_factory=Told)
    operations: list[Operation] = field(default_factory=list)

    async def do(self, key: Hashable, call: Hashable, send: Callable[[], Awaitable[Hashable]]) -> Any:
        """Sends the same request until it is answered: it took effect once, between the first send and the answer."""
        begun = time.monotonic()
        sends = 0

        async def once() -> Hashable:
            nonlocal sends
            sends += 1
            return await send()

        try:
            answer = await self.told.until_answered(once)
        except grpc.RpcError:
            self.operations.append(Operation(key, call, None, begun))
            raise
        if answer == "duplicate" and sends > 1:
            answer = "accepted or duplicate"
        self.operations.append(Operation(key, call, answer, begun, time.monotonic()))
        return answer

    def unexplained(self) -> list[Hashable]:
        """Aliases, the model's line of versions, and batches whose history no order explains."""
        return not_linearizable(self.operations, step, None)


def step(state: State, call: Hashable, answer: Hashable) -> State:
    """The state of an alias, of a model's line of versions, or of a batch after a call. All are None at first.

    answer: None for a write that nobody answered.
    """
    match call:
        case ("read",):
            after, right = state, {state}
        case ("set", expected, to) if answer is None or expected == (state or NOWHERE):
            after, right = to, {to, None}
        case ("set", _, _):
            after, right = state, {MOVED_MEANWHILE}
        case ("bump",):
            after = str(Version.parse(str(state)).bump_minor()) if state else "1.0.0"
            right = {after, None}
        case ("record",):
            after, right = RECORDED, {"duplicate" if state else "accepted", "accepted or duplicate", None}
        case _:
            raise ValueError(f"no such call: {call}")
    if answer not in right:
        raise Impossible
    return after


async def contend(registry: Any, history: History, number: int, stop: asyncio.Event) -> None:
    """One caller among several on the same model. Ends after the call under way once `stop` is set."""
    drawn = random.Random(number)
    versions = ["1.0.0"]
    for calls in itertools.count():
        if stop.is_set():
            return
        request_id = f"contender-{number}-{calls}"
        alias = drawn.choice(ALIASES)
        read = partial(_resolve, registry, alias)
        match drawn.choice(("bump", "latest", "read", "move", "move")):
            case "bump":
                versions.append(await history.do("line", ("bump",), partial(_bump, registry, request_id)))
            case "latest":
                await history.do("line", ("read",), partial(_latest, registry))
            case "read":
                await history.do(alias, ("read",), read)
            case "move":
                expected, to = await history.do(alias, ("read",), read) or NOWHERE, drawn.choice(versions)
                move = partial(_move, registry, alias, expected, to, request_id)
                await history.do(alias, ("set", expected, to), move)
        await asyncio.sleep(drawn.uniform(0, 0.2))


async def _bump(registry: Any, request_id: str) -> str:
    request = registry_pb2.BumpModelVersionRequest(
        model_id=MODEL, level=registry_pb2.BUMP_LEVEL_MINOR, request_id=request_id
    )
    return str((await registry.BumpModelVersion(request, timeout=10)).version)


async def _latest(registry: Any) -> str:
    request = registry_pb2.GetModelVersionRequest(model_id=MODEL, version="latest")
    return str((await registry.GetModelVersion(request, timeout=10)).version)


async def _resolve(registry: Any, alias: str) -> str | None:
    request = registry_pb2.ResolveAliasRequest(model_id=MODEL, alias=alias)
    try:
        return str((await registry.ResolveAlias(request, timeout=10)).version)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise


async def _move(registry: Any, alias: str, expected: str, to: str, request_id: str) -> str:
    request = registry_pb2.SetAliasRequest(
        model_id=MODEL, alias=alias, version=to, expected_version=expected, request_id=request_id
    )
    try:
        return str((await registry.SetAlias(request, timeout=10)).version)
    except grpc.RpcError as error:
        if status.reason(error) == "ALIAS_MOVED":
            return MOVED_MEANWHILE
        raise


async def record(experiment: Any, history: History, number: int, now_us: int) -> None:
    """Sends one batch of samples until it is answered; somebody else may send the same."""

    async def send() -> str:
        answer = await experiment.RecordEvents(iter([batch(number, now_us)]), timeout=20)
        assert answer.accepted + answer.duplicates == SIZE, answer
        assert 0 in {answer.accepted, answer.duplicates}, "half of a batch was kept"
        return "accepted" if answer.accepted else "duplicate"

    await history.do(("batch", number), ("record",), send)


def recorded(history: History) -> set[int]:
    """The batches that were acknowledged."""
    return {
        operation.key[1]
        for operation in history.operations
        if isinstance(operation.key, tuple) and operation.answer
    }
