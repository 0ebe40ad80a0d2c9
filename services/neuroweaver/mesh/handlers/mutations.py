"""Changes that RPCs make: each once, however often its request is repeated, and with its origin.

A request says by its type which RPC it is of, so a handler names neither the method nor its response:

    return await self._mutations.run(request, context, operation)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Generic, Protocol, TypeVar

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.wire import telemetry
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.mesh.wire.text import check_text

W = TypeVar("W", bound=idempotency.Transaction)
W_co = TypeVar("W_co", bound=idempotency.Transaction, covariant=True)
M = TypeVar("M", bound=Message)


class Store(Protocol[W_co]):
    """Where a service keeps its records."""

    def read(self, project: str) -> AbstractAsyncContextManager[idempotency.Transaction]:
        """One state of a project, whatever is written meanwhile."""

    async def transact(self, origin: ChangeOrigin, work: Callable[[W_co], Awaitable[M]]) -> M:
        """What `work` returns, once what it changed is on disk. `work` may run several times."""


class Mutations(Generic[W]):
    """The changes of one gRPC service over its store."""

    def __init__(self, store: Store[W], service: ServiceDescriptor) -> None:
        self._store = store
        self._methods: Final = _by_request(service)

    async def answered(self, request: Any, context: Any) -> Any:
        """The answer given to this request before; None if it is new.

        For what looks at the world before its transaction: a retry is answered whatever has changed since.
        Raises InvalidArgument if `request_id` was used with another request.
        """
        check_text("request_id", request.request_id)
        method = self._methods[request.DESCRIPTOR.full_name]
        async with self._store.read(caller_of(context).project) as transaction:
            return await idempotency.answered(transaction, method.name, request, _response_type(method))

    async def run(
        self,
        request: Any,
        context: Any,
        operation: Callable[[W], Awaitable[M]],
        *,
        reason_field: str = "reason",
    ) -> M:
        """The operation's answer, once; a retry reads the first one.

        operation: in a write transaction of the caller's project. reason_field: of the request, where it has
        one. Raises InvalidArgument for control characters, and if `request_id` was used with another request.
        """
        check_text("request_id", request.request_id)
        origin = origin_of(request, context, reason_field)
        method = self._methods[request.DESCRIPTOR.full_name]

        async def work(transaction: W) -> M:
            return await idempotency.once(
                transaction,
                method.name,
                request,
                _response_type(method),
                lambda: operation(transaction),
            )

        return await self._store.transact(origin, work)


def origin_of(request: Any, context: Any, reason_field: str = "reason") -> ChangeOrigin:
    """Who makes the change that a request asks for, and why.

    Raises InvalidArgument for control characters.
    """
    reason = getattr(request, reason_field, "")
    check_text(reason_field, reason)
    caller = caller_of(context)
    return ChangeOrigin(caller.project, caller.actor, reason, telemetry.current_trace_id())


def _by_request(service: ServiceDescriptor) -> dict[str, MethodDescriptor]:
    """The methods by the names of their request types, which buf's lint keeps distinct."""
    methods = {method.input_type.full_name: method for method in service.methods}
    if len(methods) != len(service.methods):
        raise ValueError(f"two methods of {service.full_name} share a request type")
    return methods


def _response_type(method: MethodDescriptor) -> Any:
    return GetMessageClass(method.output_type)
