"""Connections of an HTTP port, none of which takes more than its share of time, memory and places.

Uvicorn bounds none of this: it waits for ever for a request to be sent and for an answer to be read, and
keeps whatever a head holds.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Any, Final, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from neuroweaver.mesh.server.http_limits import HttpLimits, connections_with_files

# Requests that wait on a connection for the answer before theirs.
_MAX_PIPELINED: Final = 8
_LINGER_S: Final = 2.0
_BUFFER_BYTES: Final = 128 << 10
_TOO_LARGE: Final = (431, "head_too_large", "the request's line and headers are too long")
_TOO_SLOW: Final = (408, "request_timeout", "the request did not come in time")
_NO_ROOM: Final = (503, "too_many_connections", "too many connections are open; try again later")
_MALFORMED: Final = (400, "invalid_http", "this is not a valid HTTP request")

Answer = tuple[int, str, str]


class _Phase(Enum):
    """What of a request is coming."""

    NOTHING = auto()
    HEAD = auto()
    BODY = auto()


class Connections:
    """Those of one port."""

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self._most = connections_with_files(limits.connections)
        # The order is that in which they last had a request, or came.
        self._open: dict[_Connection, str] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, new: _Connection, address: str) -> bool:
        """False if there is no room: all those with which it would have to share have a request."""
        if crowd := self._crowd(address):
            oldest = next((each for each in crowd if not each.has_request), None)
            if oldest is None:
                return False
            self.remove(oldest)
            oldest.cut()
        self._open[new] = address
        return True

    def _crowd(self, address: str) -> list[_Connection]:
        """Those among which one more of this address is too many."""
        if len(self._open) >= self.limits.connections_per_address:
            own = [each for each, other in self._open.items() if other == address]
            if len(own) >= self.limits.connections_per_address:
                return own
        return list(self._open) if len(self._open) >= self._most else []

    def remove(self, old: _Connection) -> None:
        self._open.pop(old, None)

    def touch(self, one: _Connection) -> None:
        if address := self._open.pop(one, None):
            self._open[one] = address


class _Connection(HttpToolsProtocol):
    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._all = connections
        self._limits = connections.limits
        self._phase = _Phase.NOTHING
        self._head_bytes = 0
        self._refusal = _MALFORMED
        self._is_refused = False
        self._patience: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    @property
    def has_request(self) -> bool:
        """A whole one, whose answer is not complete."""
        return self._phase is not _Phase.BODY and self._is_answering

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def cut(self) -> None:
        self.transport.abort()

    # What comes in.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._all.add(self, self.client[0] if self.client else ""):
            self._wait(self._limits.head_s)
        else:
            self._say(_NO_ROOM)
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        self._wait(None)
        self._expect_reader(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        if not self._is_answering and (self._phase is _Phase.NOTHING or self._patience is None):
            self._phase, self._head_bytes = _Phase.HEAD, 0
            self._wait(self._limits.head_s)
        # Of a head that begins and ends elsewhere in the data, `on_headers_complete` knows the length.
        self._head_bytes += len(data)
        super().data_received(data)
        if self._phase is _Phase.HEAD and self._head_bytes > self._limits.head_bytes:
            self._refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError("too many requests at once")  # cuts the connection, as each of them is answered
        super().on_message_begin()
        self._phase, self._head_bytes = _Phase.HEAD, 0

    def on_headers_complete(self) -> None:
        # The parser says that the request is malformed after whatever is raised here.
        if (
            len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            > self._limits.head_bytes
        ):
            self._refusal = _TOO_LARGE
            raise ValueError(_TOO_LARGE[2])
        super().on_headers_complete()
        self._phase = _Phase.BODY
        self._wait(self._limits.body_s)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._phase = _Phase.NOTHING
        self._wait(None if self._is_answering else self._limits.idle_s)
        self._all.touch(self)

    def _wait(self, seconds: float | None) -> None:
        """For what comes next."""
        if self._patience is not None:
            self._patience.cancel()
        self._patience = None if seconds is None else self.loop.call_later(seconds, self._lose_patience)

    def _lose_patience(self) -> None:
        if self.flow.read_paused or self.has_request:
            self._wait(self._limits.head_s)  # it waits for us
        elif self._phase is _Phase.NOTHING:
            self.cut()
        else:
            self._refuse(_TOO_SLOW)

    # What goes out.

    def send_400_response(self, msg: str) -> None:
        del msg
        self._refuse(self._refusal)

    def _refuse(self, answer: Answer) -> None:
        """The last that it hears; nothing if it would stand inside another answer, or behind its own."""
        has_begun = self._phase is _Phase.BODY and self.cycle.response_started
        if has_begun or self.has_request or self.pipeline:
            self.cut()
            return
        self._say(answer)
        # Closed at once, it would be lost with what is still coming in.
        self._is_refused = True
        self.transport.write_eof()
        self._expect_reader(_LINGER_S)

    def _say(self, answer: Answer) -> None:
        status, code, message = answer
        kind = "server_error" if status >= 500 else "invalid_request_error"
        body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
        self.transport.write(
            STATUS_LINE[status] + b"content-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._all.touch(self)
        if self.transport.is_closing():
            self._close()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reader(self._limits.unread_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._expect_reader(None)

    def _close(self) -> None:
        """Once what was written is read, for which it has its time."""
        self.transport.close()
        self._expect_reader(self._limits.unread_s)

    def _expect_reader(self, seconds: float | None) -> None:
        if self._unread is not None:
            self._unread.cancel()
        self._unread = None if seconds is None else self.loop.call_later(seconds, self.cut)


def bound_buffers(listener: socket.socket) -> None:
    """Bounds what the system holds for each connection of a listener: it would be megabytes."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        listener.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)


def http_server(app: Callable[..., Any], limits: HttpLimits, **options: Any) -> uvicorn.Config:
    """Uvicorn's configuration of a server within these limits. options: more of it."""
    return uvicorn.Config(
        app,
        http=cast(type[asyncio.Protocol], partial(_Connection, Connections(limits))),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        log_level="error",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, round(limits.idle_s)),
        **options,
    )
