"""What handlers used before; to be deleted with its last user."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from logging import Logger
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message
from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.idempotency import Transaction
from neuroweaver.mesh.handlers.housekeeping import PERIOD_S, Chores
from neuroweaver.mesh.handlers.watch import Signal, compacted
from neuroweaver.mesh.wire.errors import Error, OutOfRange
from neuroweaver.mesh.wire.text import check_text

W = TypeVar("W", bound=Transaction)
M = TypeVar("M", bound=Message)
E = TypeVar("E")


class Readable(Protocol):
    def read(self, project: str) -> AbstractAsyncContextManager[Transaction]: ...


S = TypeVar("S", bound=Readable)


class Answering(Generic[S]):
    def __init__(self, store: S) -> None:
        self._store = store

    async def _answered(self, method: str, request: Any, context: Any, response_type: type[M]) -> M | None:
        return await answered(self._store.read(caller_of(context).project), method, request, response_type)


async def answered(
    reading: AbstractAsyncContextManager[Transaction], method: str, request: Any, response_type: type[M]
) -> M | None:
    check_text("request_id", request.request_id)
    async with reading as transaction:
        return await idempotency.answered(transaction, method, request, response_type)


async def mutated(
    transact: Callable[[Callable[[W], Awaitable[M]]], Awaitable[M]],
    method: str,
    request: Any,
    response_type: type[M],
    operation: Callable[[W], Awaitable[M]],
) -> M:
    check_text("request_id", request.request_id)

    async def work(transaction: W) -> M:
        return await idempotency.once(
            transaction, method, request, response_type, lambda: operation(transaction)
        )

    return await transact(work)


async def keep_house(log: Logger, chores: Callable[[], Chores], *, period_s: float = PERIOD_S) -> None:
    while True:
        for name, chore in chores().items():
            try:
                if done := await chore():
                    log.info("cleared away", extra={"what": name, "count": done})
            except (SQLAlchemyError, OSError, Error) as error:
                log.warning("not cleared away", extra={"what": name, "cause": type(error).__name__})
        await asyncio.sleep(period_s)


async def follow(
    load: Callable[[int, int], Awaitable[Sequence[E]]],
    *,
    since: int,
    sequence_of: Callable[[E], int],
    is_terminal: Callable[[E], bool],
    heartbeat: Callable[[int], E],
    signal: Signal,
    heartbeat_s: float = 15.0,
    poll_s: float = 1.0,
    page_size: int = 256,
) -> AsyncGenerator[E, None]:
    """The events after `since`, in order and without a gap, then those to come, until the terminal one.

    load(after, limit): the first `limit` events whose sequence is above `after`. A resource's sequences are
    1, 2, 3, … without holes; compaction may drop old events, never the newest.
    heartbeat(last): sent when there was nothing for `heartbeat_s`; tells the last sequence.

    Raises OutOfRange if events after `since` were compacted, or if `since` lies beyond the last event.
    """
    last, events, ended = await _begin(load, since, sequence_of, is_terminal, page_size)
    clock = asyncio.get_running_loop().time
    sent_at = clock()
    while not ended:
        for event in events:
            sequence = sequence_of(event)
            if sequence != last + 1:
                raise compacted(last, sequence)
            yield event
            last, sent_at = sequence, clock()
            if is_terminal(event):
                return
        seen = signal.count
        events = await load(last, page_size)
        if events:
            continue
        silent_s = clock() - sent_at
        if silent_s >= heartbeat_s:
            yield heartbeat(last)
            sent_at = clock()
            silent_s = 0.0
        await signal.wait(seen, min(poll_s, heartbeat_s - silent_s))


async def _begin(
    load: Callable[[int, int], Awaitable[Sequence[E]]],
    since: int,
    sequence_of: Callable[[E], int],
    is_terminal: Callable[[E], bool],
    page_size: int,
) -> tuple[int, Sequence[E], bool]:
    """Where to go on: the last sequence seen, the events at hand, and whether the terminal one was seen."""
    if since <= 0:
        return 0, await load(0, page_size), False
    events = await load(since - 1, page_size)
    if not events:
        raise OutOfRange(
            f"nothing with sequence {since} has happened yet; resume from the last sequence seen"
        )
    if sequence_of(events[0]) == since:
        return since, events[1:], is_terminal(events[0])
    return since, events, False
