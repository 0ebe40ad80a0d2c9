"""One shape for the four kinds of RPC, so that a concern is one function around all of them.

gRPC hands a server four kinds of handler. `Stack` makes each of them `async def (rpc) -> response`, where a
stream's responses go out through `rpc.write`, and lays layers around it:

    async def timed(rpc: Rpc, proceed: Proceed) -> Any:
        started = time.perf_counter()
        try:
            return await proceed(rpc)
        finally:
            print(rpc.method.name, rpc.code, time.perf_counter() - started)

The chain of a method is built on its first call and kept. Requests are decoded and responses encoded inside
the chain, so that no exception of theirs passes it by: gRPC itself would send its text to the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from neuroweaver.mesh.server.decoding import Decoder
from neuroweaver.mesh.wire.errors import Error, Unimplemented
from neuroweaver.mesh.wire.status import code_of, to_status

_PROBES: Final = ("grpc.health.", "grpc.reflection.")


@dataclass(frozen=True, slots=True)
class Method:
    full_name: str
    """neuroweaver.v1.RegistryService/GetModel"""
    is_request_stream: bool
    is_response_stream: bool

    @property
    def service(self) -> str:
        return self.full_name.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.full_name.rpartition("/")[2]

    @property
    def is_probe(self) -> bool:
        """Asked every few seconds by probes and tools."""
        return self.full_name.startswith(_PROBES)


@dataclass(slots=True)
class Rpc:
    """One RPC under way. `code` and `refusal` are settled when the inner layers have returned or raised."""

    method: Method
    request: Any
    """The encoded message, or an iterator of such."""
    context: grpc.aio.ServicerContext[Any, Any]
    write: Callable[[Any], Awaitable[None]]
    """Sends one message of a stream's responses."""
    code: grpc.StatusCode = grpc.StatusCode.OK
    refusal: Error | None = None


Proceed = Callable[[Rpc], Awaitable[Any]]
Layer = Callable[[Rpc, Proceed], Awaitable[Any]]
Check = Callable[[Method, Message], None]
"""Looks at one request message, a stream's each; raises an Error to refuse it."""


class Stack(grpc.aio.ServerInterceptor):
    """What lies around every handler, outermost first: observers, guards, and checks on each request message.

    observers: see how an RPC ended, in `rpc.code` and `rpc.refusal`. guards: may refuse by raising an Error.
    translate: the Error that a caller gets for an exception.
    """

    def __init__(
        self,
        *,
        translate: Callable[[Method, Exception], Error],
        observers: Sequence[Layer] = (),
        guards: Sequence[Layer] = (),
        checks: Sequence[Check] = (),
    ) -> None:
        self._layers: tuple[Layer, ...] = (*observers, partial(_settle, translate=translate), *guards)
        self._checks = tuple(checks)
        self._translate = translate
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        known = self._wrapped.get(handler_call_details.method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC says so itself, and strangers' names are not kept
            return None
        wrapped = self._wrap(handler_call_details.method.lstrip("/"), handler)
        self._wrapped[handler_call_details.method] = wrapped
        return wrapped

    def _wrap(self, name: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        method = Method(name, handler.request_streaming, handler.response_streaming)
        checks = () if method.is_probe else tuple(partial(check, method) for check in self._checks)
        decoder = Decoder(handler.request_deserializer, checks)
        call: Proceed = partial(_call, _behavior(handler), decoder, handler.response_serializer)
        for layer in reversed(self._layers):
            call = partial(_around, layer, call)

        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await self._answer(call, Rpc(method, request, context, context.write))
            except grpc.aio.InternalError as error:
                # The peer is gone; where gRPC has not noticed yet, it would log the failed batch as an error.
                raise asyncio.CancelledError from error

        return _HANDLERS[method.is_request_stream, method.is_response_stream](
            answer,
            # Requests arrive as bytes and are decoded inside `_call`, a stream's as they are read.
            request_deserializer=None,
            response_serializer=handler.response_serializer if method.is_response_stream else None,
        )

    async def _answer(self, call: Proceed, rpc: Rpc) -> Any:
        try:
            return await call(rpc)
        except Exception as error:
            if isinstance(error, grpc.aio.AbortError) or _is_gone(error):
                raise  # the status is on its way, or there is nobody left to tell
            refusal = rpc.refusal or self._translate(rpc.method, error)
        return await rpc.context.abort_with_status(to_status(refusal))


_HANDLERS: dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _behavior(handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[[Any, Any], Any]:
    behavior = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    if behavior is None:
        raise TypeError("a method handler without a behavior")
    return behavior


def _around(layer: Layer, proceed: Proceed, rpc: Rpc) -> Awaitable[Any]:
    return layer(rpc, proceed)


async def _call(
    behavior: Callable[[Any, Any], Any],
    decoder: Decoder,
    serializer: Callable[[Any], bytes] | None,
    rpc: Rpc,
) -> Any:
    request = decoder.each(rpc.request) if rpc.method.is_request_stream else await decoder(rpc.request)
    try:
        answer = behavior(request, rpc.context)
    except NotImplementedError as error:
        # A generated base servicer's methods are plain functions; ours raise only when awaited.
        raise Unimplemented(f"{rpc.method.full_name} is not implemented by this server") from error
    if not rpc.method.is_response_stream:
        response = await answer
        if response is None and rpc.context.code() not in {None, grpc.StatusCode.OK}:
            return None  # the handler set a code by itself, and that goes out without a message
        return serializer(response) if serializer else response
    if isinstance(answer, AsyncGenerator):
        # Closed at once on cancellation, not whenever the garbage collector comes by.
        async with aclosing(answer):
            async for response in answer:
                await rpc.write(response)
    else:
        await answer
    return None


async def _settle(rpc: Rpc, proceed: Proceed, translate: Callable[[Method, Exception], Error]) -> Any:
    """Lets the layers further out read from `rpc` how it ended."""
    try:
        response = await proceed(rpc)
    except asyncio.CancelledError:
        rpc.code = _code_of_cancelled(rpc)
        raise
    except grpc.aio.AbortError:
        rpc.code = rpc.context.code()
        raise
    except Exception as error:
        if _is_gone(error):
            rpc.code = _code_of_cancelled(rpc)
            raise
        rpc.refusal = translate(rpc.method, error)
        rpc.code = code_of(rpc.refusal)
        raise
    set_by_handler: grpc.StatusCode | None = rpc.context.code()
    rpc.code = set_by_handler or grpc.StatusCode.OK
    return response


def _is_gone(error: Exception) -> bool:
    """The peer left or the server stopped: gRPC's own exceptions, but for a wrong use of it."""
    return isinstance(error, grpc.aio.BaseError) and not isinstance(error, grpc.aio.UsageError)


def _code_of_cancelled(rpc: Rpc) -> grpc.StatusCode:
    remaining: float | None = rpc.context.time_remaining()
    late = remaining is not None and remaining <= 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
