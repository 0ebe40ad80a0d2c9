"""Changes that RPCs make: each once, however often its request is repeated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh import idempotency
from neuroweaver.mesh.caller import caller_of
from neuroweaver.mesh.text import check_text


class Transaction(Protocol):
    """What a service reads and writes a project with."""

    connection: AsyncConnection
    project: str


W = TypeVar("W", bound=Transaction)
M = TypeVar("M", bound=Message)


class Readable(Protocol):
    """A service's store."""

    def read(self, project: str) -> AbstractAsyncContextManager[Transaction]:
        """One state of a project, whatever is written meanwhile."""


S = TypeVar("S", bound=Readable)


class Answering(Generic[S]):
    """RPCs over a store, whose repeated requests are answered as the first time."""

    def __init__(self, store: S) -> None:
        self._store = store

    async def _answered(self, method: str, request: Any, context: Any, response_type: type[M]) -> M | None:
        """As `answered`, in the caller's project."""
        return await answered(self._store.read(caller_of(context).project), method, request, response_type)


async def answered(
    reading: AbstractAsyncContextManager[Transaction], method: str, request: Any, response_type: type[M]
) -> M | None:
    """The answer given to this request before; None if it is new.

    For what looks at the world before its transaction: a retry is answered whatever has changed since.
    reading: of the caller's project. Raises InvalidArgument if `request_id` was used with another request.
    """
    check_text("request_id", request.request_id)
    async with reading as transaction:
        return await idempotency.answered(
            transaction.connection,
            project=transaction.project,
            method=method,
            request_id=request.request_id,
            request=request,
            response_type=response_type,
        )


async def mutated(
    transact: Callable[[Callable[[W], Awaitable[M]]], Awaitable[M]],
    method: str,
    request: Any,
    response_type: type[M],
    operation: Callable[[W], Awaitable[M]],
) -> M:
    """The operation's answer, once; a retry reads the first one.

    transact: runs it in a write transaction of the caller's project. Raises InvalidArgument if `request_id`
    was used with another request.
    """
    check_text("request_id", request.request_id)

    async def work(transaction: W) -> M:
        return await idempotency.once(
            transaction.connection,
            project=transaction.project,
            method=method,
            request_id=request.request_id,
            request=request,
            response_type=response_type,
            operation=lambda: operation(transaction),
        )

    return await transact(work)
