from __future__ import annotations

import gzip
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx2
import pytest

from neuroweaver.mesh.wire import bounded_http
from neuroweaver.mesh.wire.bounded_http import AsyncClient, Client, RedirectRefused, Refused

URL = "http://judge.example/v1"


class Chunks(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that counts how much of it was read."""

    def __init__(self, chunks) -> None:
        self._chunks = chunks
        self.read = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.read += 1
            yield chunk

    async def __aiter__(self):
        for chunk in self:
            yield chunk


def answering(*answers: httpx2.Response):
    """A transport that gives the answers in turn, and keeps the requests."""
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return answers[len(seen) - 1]

    return httpx2.MockTransport(answer), seen


def redirect(to: str, status: int = 307) -> httpx2.Response:
    return httpx2.Response(status, headers={"location": to})


async def asked(transport, kind: str, *, max_bytes: int = 100, **options) -> httpx2.Response:
    if kind == "sync":
        with Client(limit_s=60, max_bytes=max_bytes, transport=transport) as client:
            return client.post(URL, content=b"{}", **options)
    async with AsyncClient(max_bytes=max_bytes, transport=transport) as client:
        return await client.post(URL, content=b"{}", **options)


KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@KINDS
async def test_an_answer_within_its_bounds_is_whole(kind):
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    transport, _ = answering(httpx2.Response(200, headers=headers, content=gzip.compress(b'{"a": 1}')))
    answer = await asked(transport, kind)
    assert answer.json() == {"a": 1}
    assert answer.headers["content-type"] == "application/json"
    assert answer.raise_for_status() is answer


@KINDS
async def test_an_endless_answer_is_given_up_at_its_bound(kind):
    body = Chunks(itertools.repeat(b"x" * 10))
    transport, _ = answering(httpx2.Response(200, stream=body))
    with pytest.raises(Refused, match="answers with more than"):
        await asked(transport, kind)
    assert body.read == 11


@KINDS
async def test_what_is_counted_is_what_unpacks(kind):
    packed = gzip.compress(b"x" * 1_000_000)
    transport, _ = answering(httpx2.Response(200, headers={"content-encoding": "gzip"}, content=packed))
    with pytest.raises(Refused):
        await asked(transport, kind, max_bytes=10_000)


@KINDS
@pytest.mark.parametrize(
    "to",
    [
        "http://evil.example/v1",
        "http://judge.example:8080/v1",
        "http://169.254.169.254/latest",
        "https://evil.example/v1",
        "//evil.example/v1",
    ],
)
async def test_nothing_is_sent_to_another_host(kind, to):
    transport, seen = answering(redirect(to), httpx2.Response(200))
    with pytest.raises(RedirectRefused, match="redirects to another host"):
        await asked(transport, kind)
    assert len(seen) == 1


@KINDS
@pytest.mark.parametrize("to", ["/v2", "http://judge.example/v2", "https://judge.example/v1"])
async def test_a_redirect_within_the_host_is_followed(kind, to):
    transport, seen = answering(redirect(to), httpx2.Response(200, text="there"))
    assert (await asked(transport, kind)).text == "there"
    assert (seen[1].method, seen[1].read()) == ("POST", b"{}")


@KINDS
async def test_redirects_end(kind):
    transport, seen = answering(*(redirect("/again") for _ in range(20)))
    with pytest.raises(RedirectRefused, match="without end"):
        await asked(transport, kind)
    assert len(seen) == 6


@KINDS
async def test_a_redirect_that_nobody_wants_followed_is_the_answer(kind):
    transport, seen = answering(redirect("http://cdn.example/file", 302))
    answer = await asked(transport, kind, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"], len(seen)) == (302, "http://cdn.example/file", 1)


def test_a_body_that_drips_outlasts_no_limit(monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr(bounded_http.time, "monotonic", lambda: next(seconds))
    body = Chunks(itertools.repeat(b" "))
    transport, _ = answering(httpx2.Response(200, stream=body))
    with (
        Client(limit_s=5, transport=transport) as client,
        pytest.raises(httpx2.ReadTimeout, match="no whole answer within 5 s"),
    ):
        client.get(URL)
    assert body.read == 6


@contextmanager
def dripping(head: bytes) -> Iterator[str]:
    """A server that sends the head of its answer byte by byte, whole in the end; its URL."""

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            for at in range(len(head)):
                connection.sendall(head[at : at + 1])
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.join()


@pytest.mark.parametrize("is_streamed", [True, False])
def test_headers_that_drip_outlast_no_limit(is_streamed):
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx: " + b"y" * 200 + b"\r\n\r\n"
    with dripping(head) as url, Client(limit_s=0.3, timeout=60, trust_env=False) as client:
        request = client.build_request("GET", url)
        with pytest.raises(httpx2.ReadTimeout):
            client.send(request, stream=is_streamed)


def test_a_download_is_left_to_its_reader():
    transport, _ = answering(redirect("http://cdn.example/file"), httpx2.Response(200, content=b"x" * 1000))
    with (
        Client(limit_s=5, max_bytes=10, transport=transport, follow_redirects=True) as client,
        client.stream("GET", URL) as answer,
    ):
        assert len(answer.read()) == 1000
