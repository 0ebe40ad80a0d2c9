from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import httpx2
import pytest

from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.routing.counts import Counts
from neuroweaver.deployer.routing.router import Router, public_path
from neuroweaver.mesh.server.http_limits import HttpLimits

KEY = Key("default", "advisor", "default")


class OneReplica:
    """A `Fleet` and its only `Upstream`."""

    redirect, max_prompt_chars = None, 0
    replica_id, revision, base_url = "advisor-1", 1, "http://127.0.0.1:1"

    def __init__(self) -> None:
        self.counted = Counts()
        self.suspicions: list[bool] = []

    def pick(self, conversation, tried):
        return None if tried else self

    async def awake(self, conversation, within_s):
        return None

    def counts(self, revision):
        return self.counted

    def is_expected(self):
        return True

    def busy(self):
        return nullcontext()

    def suspect(self, *, has_refused):
        self.suspicions.append(has_refused)


async def status_of(
    replica: OneReplica, scope: dict[str, Any], transport: httpx2.AsyncBaseTransport, content: bytes = b"{}"
) -> int:
    messages = []
    body = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def receive():
        return next(body, None) or await asyncio.Future()

    async def send(message):
        messages.append(message)

    async with httpx2.AsyncClient(transport=transport) as client:
        router = Router(
            client,
            client,
            lambda path: (KEY, public_path(path)),
            lambda _: replica,
            HttpLimits(),
            host="0.0.0.0",
            endpoint=lambda _: "",
            wake_s=0.0,
        )
        whole = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
        await router({**whole, "query_string": b"", **scope}, receive, send)
    assert json.loads(messages[1]["body"])
    return int(messages[0]["status"])


def answering(status: int) -> httpx2.MockTransport:
    async def body() -> AsyncIterator[bytes]:
        yield b'{"told": 1}'

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, content=body())

    return httpx2.MockTransport(answer)


async def test_a_request_that_cannot_be_sent_is_its_callers_mistake():
    async def unsendable(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.LocalProtocolError("Illegal header value")

    replica = OneReplica()
    assert await status_of(replica, {}, httpx2.MockTransport(unsendable)) == 400
    assert await status_of(replica, {"query_string": b"a" * 70_000}, httpx2.MockTransport(unsendable)) == 400
    assert (replica.counted.requests, replica.counted.errors, replica.suspicions) == (0, 0, [])


@pytest.mark.parametrize(
    ("error", "has_refused"), [(httpx2.ConnectError, True), (httpx2.ConnectTimeout, False)]
)
async def test_a_replica_is_suspected_once_it_takes_no_connection_of_the_requests_own(error, has_refused):
    asked = []

    async def not_connected(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        raise error("no connection")

    replica = OneReplica()
    assert await status_of(replica, {}, httpx2.MockTransport(not_connected)) == 503
    assert (len(asked), replica.suspicions) == (2, [has_refused])
    assert (replica.counted.requests, replica.counted.errors) == (0, 0)


@pytest.mark.parametrize(
    ("status", "counted"),
    [
        (200, (1, 0, 0)),
        *((mistake, (1, 0, 0)) for mistake in (400, 404, 408, 413)),
        (429, (0, 0, 1)),
        *((failure, (1, 1, 0)) for failure in (500, 503)),
    ],
)
async def test_only_a_fault_of_the_revision_counts_as_its_error(status, counted):
    replica = OneReplica()
    assert await status_of(replica, {}, answering(status)) == status
    counts = replica.counted
    assert (counts.requests, counts.errors, counts.turned_away) == counted
    assert replica.suspicions == []


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 500}}


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"prompt": "x" * 100}, 200),
        ({"prompt": "x" * 101}, 400),
        ({"prompt": "\U0001f600" * 100}, 200),
        ({"prompt": ["x" * 60, "x" * 60]}, 400),
        ({"messages": [{"role": "user", "content": "x" * 101}]}, 400),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 101}]}]}, 400),
        ({"messages": [{"role": "user", "content": [PICTURE, {"type": "text", "text": "x"}]}]}, 200),
        ({"input": "x" * 101}, 400),
        ({"prompt": list(range(500))}, 200),
    ],
)
async def test_a_prompt_that_no_context_has_room_for_reaches_no_server(asked, status):
    replica = OneReplica()
    replica.max_prompt_chars = 100
    content = json.dumps(asked).encode()
    assert await status_of(replica, {}, answering(200), content) == status
    assert (replica.counted.requests, replica.counted.errors) == (int(status == 200), 0)


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"[" * 400 + b"]" * 400, b'{"prompt": "\\ud83d' + b"x" * 200]
)
async def test_what_is_wrong_with_a_body_is_left_to_its_server(body):
    replica = OneReplica()
    replica.max_prompt_chars = 100
    assert await status_of(replica, {}, answering(200), body) == 200
