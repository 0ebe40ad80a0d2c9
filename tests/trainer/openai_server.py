"""An OpenAI-compatible endpoint on loopback whose answers a test writes."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

DRIP_EVERY_S = 0.1


@dataclass(frozen=True)
class Reply:
    """One HTTP answer. `text` is what the model says; `body` replaces the whole JSON body."""

    text: str | None = ""
    status: int = 200
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    raw: bytes | None = None
    drip_s: float = 0.0
    """Seconds for which a space comes now and then before the content."""


def refusal(status: int, message: str = "no", *, code: str | None = None, param: str | None = None) -> Reply:
    """An error as OpenAI words it, with no waiting asked for."""
    error = {"message": message, "type": "error", "code": code, "param": param}
    return Reply(status=status, body={"error": error}, headers=(("retry-after-ms", "1"),))


Script = Callable[[dict[str, Any], int], Reply]


@dataclass
class FakeOpenAI:
    """`script` gets each request's body and its number from 0; requests and their headers are kept."""

    script: Script
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most_at_once: int = 0
    base_url: str = ""
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.headers.append(headers)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            reply = self.script(body, number)
            time.sleep(reply.delay_s)
            return reply
        finally:
            with self._lock:
                self._at_once -= 1


def completion(text: str | None, model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None if text is not None else "I cannot."}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def in_turn(*replies: Reply) -> Script:
    """The replies one after the other, the last one for ever."""
    return lambda _, number: replies[min(number, len(replies) - 1)]


@contextmanager
def serving(script: Script, *, certificate: tuple[Path, Path] | None = None) -> Iterator[FakeOpenAI]:
    """certificate: its file and its key's, for TLS."""
    fake = FakeOpenAI(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.paths.append(self.path)
            reply = fake.answer(body, {name.lower(): value for name, value in self.headers.items()})
            content = reply.raw
            if content is None:
                told = completion(reply.text, body["model"]) if reply.body is None else reply.body
                content = json.dumps(told).encode()
            try:
                self.send_response(reply.status)
                own = {name.lower() for name, _ in reply.headers}
                if "content-type" not in own:
                    self.send_header("Content-Type", "application/json")
                drops = round(reply.drip_s / DRIP_EVERY_S)
                self.send_header("Content-Length", str(drops + len(content)))
                for name, value in reply.headers:
                    self.send_header(name, value)
                self.end_headers()
                for _ in range(drops):
                    self.wfile.write(b" ")
                    time.sleep(DRIP_EVERY_S)
                self.wfile.write(content)
            except ConnectionError:
                return  # the client gave up waiting, as some tests want

        def log_message(self, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*certificate)
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.handle_error = lambda *_: None
    fake.base_url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
