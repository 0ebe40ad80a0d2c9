"""The two endpoints that generate: from a request to its whole answer, or to its chunks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from neuroweaver.mesh.server.http_bodies import Bodies, BodyRefused, CallerGone
from neuroweaver.mesh.wire.json_values import Broken, parsed
from neuroweaver.serving.engine.engine import QueueFull
from neuroweaver.serving.engine.generation import Answer, Delta, Generation
from neuroweaver.serving.http import replies
from neuroweaver.serving.http.metrics import Metrics
from neuroweaver.serving.http.replies import Reply
from neuroweaver.serving.requests import ApiError, Asked
from neuroweaver.serving.work import Work

# What nginx logs for a client that closed its connection; nobody receives it.
CLIENT_GONE: Final = 499


class Generate:
    """An ASGI endpoint. Each request ends in exactly one count of its status."""

    def __init__(
        self, work: Work, metrics: Metrics, read: Callable[[Any], Asked], *, is_chat: bool, revision: str
    ) -> None:
        self._work = work
        self._metrics = metrics
        self._read = read
        self._is_chat = is_chat
        self._revision = revision

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.monotonic()
        status = 500
        try:
            with self._work.request():
                status = await self._respond(Request(scope, receive), send, start)
        except ApiError as error:
            status = error.status
            await error_response(error)(scope, receive, send)
        except ClientDisconnect:
            status = CLIENT_GONE
        finally:
            self._count(status, start)

    def _count(self, status: int, start: float) -> None:
        self._metrics.requests.labels(str(status)).inc()
        if status >= 500:
            self._metrics.errors.inc()
        if status < 400:
            self._metrics.duration.observe(time.monotonic() - start)

    async def _respond(self, request: Request, send: Send, start: float) -> int:
        asked = self._read(await read_json(request, self._work.bodies))
        answer, reply = await self._begin(asked)
        self._metrics.prompt_tokens.inc(reply.prompt_tokens)
        try:
            async with aclosing(self._deltas(request, answer, start)) as deltas:
                if asked.streams:
                    return await self._stream(deltas, reply, send)
                return await self._whole(deltas, reply, request, send)
        finally:
            self._work.leave(answer)

    async def _begin(self, asked: Asked) -> tuple[Answer, Reply]:
        """Raises ApiError."""
        version = self._work.versions.meant(asked.model)
        self._work.refuse_unless_ready()
        if isinstance(asked.prompt, list) and isinstance(asked.prompt[0], int):
            self._max_tokens(asked, len(asked.prompt))
        prompt = await self._work.tokenize(asked.prompt)
        generation = Generation(
            prompt=prompt,
            max_tokens=self._max_tokens(asked, len(prompt)),
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=asked.seed,
            stops=asked.stops,
            version=version,
            ends=frozenset() if asked.ignore_eos else self._work.ends(version),
        )
        try:
            answer = self._work.submit(generation)
        except QueueFull as error:
            raise ApiError(
                "Too many requests are waiting; try again later.",
                status=429,
                kind="rate_limit_error",
                code="queue_full",
                retry_after_s=error.retry_after_s,
            ) from error
        reply = Reply(
            model=self._work.versions.full_name(version),
            is_chat=self._is_chat,
            prompt_tokens=len(prompt),
            fingerprint=f"nw-{self._revision or version}",
            includes_usage=asked.includes_usage,
        )
        return answer, reply

    def _max_tokens(self, asked: Asked, prompt_tokens: int) -> int:
        """Raises ApiError."""
        context = self._work.max_context
        wanted = asked.max_tokens
        if prompt_tokens + (wanted or 1) > context:
            answer = f" and {wanted} of the answer" if wanted else ""
            raise ApiError(
                f"This model's maximum context length is {context} tokens, but the request is for "
                f"{prompt_tokens} of the prompt{answer}.",
                parameter="messages" if self._is_chat else "prompt",
                code="context_length_exceeded",
            )
        return wanted or context - prompt_tokens

    async def _deltas(self, request: Request, answer: Answer, start: float) -> AsyncGenerator[Delta, None]:
        """Raises ClientDisconnect."""
        deltas = self._work.deltas(answer)
        watcher = asyncio.ensure_future(_gone(request))
        watcher.add_done_callback(lambda _: deltas.end())
        tokens = 0
        try:
            while True:
                delta = await deltas.get()
                if delta is None:
                    raise ClientDisconnect
                if not tokens:
                    self._metrics.first_token.observe(time.monotonic() - start)
                self._metrics.tokens.inc(delta.tokens - tokens)
                tokens = delta.tokens
                yield delta
                if delta.is_last:
                    return
        finally:
            watcher.cancel()

    async def _whole(self, deltas: AsyncIterator[Delta], reply: Reply, request: Request, send: Send) -> int:
        """Raises ApiError, ClientDisconnect."""
        texts = []
        async for delta in deltas:
            if delta.error:
                raise ApiError(delta.error, status=500, kind="server_error", code="engine_failed")
            texts.append(delta.text)
            if delta.finish_reason:
                content = reply.whole("".join(texts), delta.finish_reason, delta.tokens)
                await JSONResponse(content)(request.scope, request.receive, send)
        return 200

    async def _stream(self, deltas: AsyncIterator[Delta], reply: Reply, send: Send) -> int:
        """Raises ClientDisconnect."""
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        status = 200
        opening = reply.opening()
        if opening:
            await _send_piece(send, replies.event(opening))
        async for delta in deltas:
            if delta.error:
                status = 500
                error = ApiError(delta.error, status=500, kind="server_error", code="engine_failed")
                await _send_piece(send, replies.event(error.body()))
                break
            await _send_piece(send, _events(delta, reply))
        await _send_piece(send, b"", more=False)
        return status


_STREAM_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def _events(delta: Delta, reply: Reply) -> bytes:
    events = []
    if delta.text:
        events.append(replies.event(reply.piece(delta.text)))
    if delta.finish_reason:
        events.append(replies.event(reply.closing(delta.finish_reason)))
        if reply.includes_usage:
            events.append(replies.event(reply.usage_chunk(delta.tokens)))
        events.append(replies.DONE)
    return b"".join(events)


async def _send_piece(send: Send, body: bytes, *, more: bool = True) -> None:
    if body or not more:
        await send({"type": "http.response.body", "body": body, "more_body": more})


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def read_json(request: Request, bodies: Bodies) -> Any:
    """Raises ApiError, ClientDisconnect."""
    try:
        async with bodies.read(request.headers.raw, request.receive) as body:
            return parsed(body)
    except CallerGone as error:
        raise ClientDisconnect from error
    except BodyRefused as error:
        raise ApiError(error.message, status=error.status, kind=error.kind, code=error.code) from error
    except Broken as error:
        raise _unreadable(error) from error


def _unreadable(error: Broken) -> ApiError:
    if not error.path:
        return ApiError(f"The body {error}.", code="invalid_json")
    return ApiError(f"Invalid value for '{error.path}': {error}.", parameter=error.path, code="invalid_value")


def error_response(error: ApiError) -> Response:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(error.body(), error.status, headers)
