"""Revisions of rows in PostgreSQL; see `revision` for what they prove."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final

import psycopg
from psycopg import pq

from neuroweaver.mesh.database.revision import Revision, Revisions

# A server that is gone or stuck is for an ordinary read to tell. The first in ms, the other in seconds.
IMPATIENT: Final[Mapping[str, Any]] = {"tcp_user_timeout": 2_000, "keepalives_interval": 1}
_STATEMENT_TIMEOUT_MS: Final = 2_000
_RETRY_S: Final = 1.0

_NAME: Final = b"revisions"

# With it a question always fits into an empty socket's buffer.
_MAX_KEYS: Final = 64


class RowRevisions(Revisions):
    """Of rows in PostgreSQL: one round trip, shared by all who come while another is under way.

    On libpq itself, which takes half of the time that a cursor takes.

    arguments: of psycopg's connect. statement: gives pairs of key and revision for an array of keys, `$1`.
    """

    def __init__(self, arguments: Mapping[str, Any], schema: str, statement: str) -> None:
        options = f"-csearch_path={schema} -cstatement_timeout={_STATEMENT_TIMEOUT_MS}"
        self._arguments = {**arguments, **IMPATIENT, "options": options, "autocommit": True}
        self._statement = statement
        self._connection: pq.abc.PGconn | None = None
        self._opening: asyncio.Task[None] | None = None
        self._rest_until = 0.0
        self._is_closed = False
        self._asked: dict[str, list[asyncio.Future[str | None]]] = {}
        self._waiting: dict[str, list[asyncio.Future[str | None]]] = {}
        self._found: dict[str, str] = {}

    async def of(self, key: str) -> Revision | None:
        if self._connection is None:
            await self._opened()
        if self._connection is None:
            return None
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        # What is asked already may have been answered before this caller came, so it waits for the next turn.
        self._waiting.setdefault(key, []).append(answer)
        if not self._asked:
            self._ask(self._connection)
        return await answer

    def _ask(self, connection: pq.abc.PGconn) -> None:
        for key in list(islice(self._waiting, _MAX_KEYS)):
            self._asked[key] = self._waiting.pop(key)
        try:
            connection.send_query_prepared(_NAME, [_array(self._asked)])
            is_sent = connection.flush() == 0
        except psycopg.Error:
            is_sent = False
        if not is_sent:
            self._lose()

    def _readable(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            connection.consume_input()
            while not connection.is_busy():
                result = connection.get_result()
                if result is None:
                    self._answered(connection)
                    return
                self._take(result)
        except psycopg.Error:  # an ordinary read says what is wrong
            self._lose()

    def _take(self, result: pq.abc.PGresult) -> None:
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise psycopg.DatabaseError(result.error_message.decode(errors="replace"))
        for row in range(result.ntuples):
            key, revision = result.get_value(row, 0), result.get_value(row, 1)
            if key is not None and revision is not None:
                self._found[key.decode()] = revision.decode()

    def _answered(self, connection: pq.abc.PGconn) -> None:
        asked, self._asked, found, self._found = self._asked, {}, self._found, {}
        for key, answers in asked.items():
            _settle(answers, found.get(key))
        if self._waiting:
            self._ask(connection)

    def _lose(self) -> None:
        """Gives up the connection; whoever waits is told nothing."""
        loop = asyncio.get_running_loop()
        self._rest_until = loop.time() + _RETRY_S
        connection, self._connection = self._connection, None
        if connection:
            loop.remove_reader(connection.socket)
            connection.finish()
        for answers in (*self._asked.values(), *self._waiting.values()):
            _settle(answers, None)
        self._asked, self._waiting, self._found = {}, {}, {}

    async def _opened(self) -> None:
        if self._is_closed or asyncio.get_running_loop().time() < self._rest_until:
            return
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        # Others wait for it as well, whatever becomes of this caller.
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection = await psycopg.AsyncConnection.connect(**self._arguments)
            await connection.execute(f"PREPARE {_NAME.decode()} (text[]) AS {self._statement}".encode())
        except (psycopg.Error, OSError):
            self._rest_until = loop.time() + _RETRY_S
            return
        finally:
            self._opening = None
        self._connection = connection.pgconn
        self._connection.nonblocking = 1
        loop.add_reader(self._connection.socket, self._readable)
        if self._is_closed:
            self._lose()

    async def close(self) -> None:
        self._is_closed = True
        self._lose()


def _settle(answers: Iterable[asyncio.Future[str | None]], revision: str | None) -> None:
    for answer in answers:
        if not answer.done():  # a caller that was cancelled
            answer.set_result(revision)


def _array(keys: Iterable[str]) -> bytes:
    """As PostgreSQL reads an array of texts."""
    quoted = (key.replace("\\", "\\\\").replace('"', '\\"') for key in keys)
    return ("{" + ",".join(f'"{key}"' for key in quoted) + "}").encode()
