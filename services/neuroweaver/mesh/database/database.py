"""One database a service: an SQLite file, or a schema of a PostgreSQL database.

Both give the same guarantees. A write transaction is serialisable: what it read has not changed when it
commits. A read transaction sees one state and refuses to write. A commit that returned is on disk.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import aiosqlite
from sqlalchemy import BigInteger, Dialect, String, TypeDecorator, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from neuroweaver.mesh.database.changes import Changes, FileChanges
from neuroweaver.mesh.database.refusals import is_conflict, moved, read_only
from neuroweaver.mesh.database.revision import FileRevisions, Revisions, identity_of, uri_of
from neuroweaver.mesh.wire.clock import from_microseconds, microseconds

T = TypeVar("T")

# Writers of one process queue for the one writing connection; this bounds the wait for another process's.
_BUSY_TIMEOUT_S: Final = 10.0

# Older libraries can corrupt a database in WAL mode (fixed in 3.51.3, https://sqlite.org/wal.html#walresetbug).
_WAL_IS_SAFE: Final = sqlite3.sqlite_version_info >= (3, 51, 3)

# A server that is gone or stuck is told of soon. All in seconds but for the _ms.
_PATIENCE: Final[Mapping[str, Any]] = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
_CHECK_S: Final = 5.0

_MIGRATION_LOCK: Final = (
    "SELECT pg_advisory_xact_lock(hashtext('neuroweaver.migrations'), hashtext(%s))"  # held until the commit
)

_MAX_BACKOFF_S: Final = 0.25


class UtcDateTime(TypeDecorator[datetime]):
    """A moment as microseconds since 1970 UTC: the same digits, the same order in both databases."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a time zone names no moment")
        return microseconds(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else from_microseconds(value)


def ascii_text(length: int) -> String:
    """Text that sorts byte by byte in both databases, whatever the language of the server."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


class Database:
    """`url`: sqlite:///<file> or postgresql://…; `schema`: this service's part of a PostgreSQL database."""

    def __init__(self, url: str, schema: str) -> None:
        self.schema = schema
        self._url = make_url(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._revisions: list[Revisions] = []
        self._file: _File | None = None
        if self.is_sqlite:
            self._file = _File.of(self._url)
            self._reader, self._writer, self._checker = _sqlite_engines(self._url)
        else:
            self._reader, self._writer, self._checker = _postgresql_engines(self._url, schema)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state. A statement that would write raises."""
        if self._file:
            self._file.require()
        async with self._reader.begin() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits at the end, or leaves no trace if the block raises.

        On PostgreSQL another writer can make it fail (a caller then reads ABORTED): `transact` tries again.
        """
        if self._file:
            self._file.require()
        async with self._writer.begin() as connection:
            yield connection

    async def transact(
        self, work: Callable[[AsyncConnection], Awaitable[T]], *, patience_s: float = 15.0
    ) -> T:
        """What `work` returns, from the transaction in which it was not disturbed by another writer.

        `work` may run several times, so it does nothing but read and write through its connection. When
        `patience_s` is over, the last failure is raised.
        """
        give_up = time.monotonic() + patience_s
        backoff_s = 0.005
        while True:
            try:
                async with self.write() as connection:
                    return await work(connection)
            except DBAPIError as error:
                if not is_conflict(error) or time.monotonic() > give_up:
                    raise
            await asyncio.sleep(random.uniform(0, backoff_s))
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[AsyncConnection]:
        """A transaction in which no other of these runs, in any process; for changes of the schema."""
        if self.is_sqlite:
            async with self.write() as connection:
                yield connection
            return
        async with self._writer.connect() as connection:
            # Not a snapshot isolation level: the snapshot would be older than the lock that is waited for.
            await connection.execution_options(isolation_level="READ COMMITTED")
            async with connection.begin():
                await connection.exec_driver_sql(_MIGRATION_LOCK, (self.schema,))
                yield connection

    async def check(self) -> None:
        """Raises what keeps it from being read and written, as far as can be told without writing."""
        if self._file:
            self._file.require_writable()
        async with asyncio.timeout(_CHECK_S), self._checker.begin() as connection:
            if self.is_sqlite:
                await connection.exec_driver_sql("SELECT count(*) FROM sqlite_schema")
            elif (await connection.exec_driver_sql("SELECT pg_is_in_recovery()")).scalar():
                raise read_only()

    def revisions(self, statement: str) -> Revisions:
        """Tells whether anything was written since a moment ago; until this database is closed.

        statement: for PostgreSQL, gives pairs of key and revision for a list of keys.
        """
        if self.is_sqlite:
            opened: Revisions = FileRevisions(Path(self._url.database or ""))
        else:
            # Imported here: on SQLite nothing needs PostgreSQL's driver, which takes a fifth of a second.
            from neuroweaver.mesh.database.row_revisions import RowRevisions  # noqa: PLC0415

            opened = RowRevisions(self._driver_arguments(), self.schema, statement)
        self._revisions.append(opened)
        return opened

    def changes(self) -> Changes:
        """Tells what other processes commit, and tells them what this one does."""
        if self.is_sqlite:
            return FileChanges(self._writer)
        from neuroweaver.mesh.database.notifications import Notifications  # noqa: PLC0415  # as above

        return Notifications(self._driver_arguments(), self.schema, self._reader)

    def _driver_arguments(self) -> Mapping[str, Any]:
        _, arguments = self._reader.dialect.create_connect_args(self._url)
        return {**_PATIENCE, **arguments}

    async def close(self) -> None:
        for opened in self._revisions:
            await opened.close()
        for engine in (self._reader, self._writer, self._checker):
            await engine.dispose()


class _Uninterrupted(aiosqlite.Connection):
    """Finishes each operation before it lets a cancelled task go.

    A read that is left half-way keeps its lock for as long as anything holds the cursor, and in the rollback
    journal's mode no writer could commit any more. So a cancellation is taken back, and given again once the
    operation is over; it arrives after the transaction, whose last operations wait here as well.
    """

    async def _execute(self, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        operation: asyncio.Future[T] = asyncio.ensure_future(
            super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        )
        cancellations = 0
        while not operation.done():
            try:
                await asyncio.wait({operation})
            except asyncio.CancelledError:
                cancellations += 1
        task = asyncio.current_task()
        for _ in range(cancellations if task else 0):
            # Counted down and up again: `asyncio.timeout` tells its own cancellation by this count.
            task.uncancel()  # type: ignore[union-attr]
            asyncio.get_running_loop().call_soon(task.cancel)  # type: ignore[union-attr]
        return operation.result()


async def _connect_sqlite(file: str, **arguments: Any) -> aiosqlite.Connection:
    connection = _Uninterrupted(
        lambda: sqlite3.connect(uri_of(Path(file)), uri=True, **arguments), iter_chunk_size=64
    )
    # As SQLAlchemy does for its own: a connection that nobody closed must not keep the process alive.
    connection._thread.daemon = True
    try:
        return await connection
    except BaseException:
        # Its thread ends by itself, and tells the event loop so: not after that has been closed.
        await asyncio.to_thread(connection._thread.join)
        raise


@dataclass(frozen=True)
class _File:
    """An SQLite file as it was opened. Connections go on with it after it was deleted or replaced: what they
    write then is lost, and what they read is the past.
    """

    path: Path
    identity: tuple[int, int]

    @classmethod
    def of(cls, url: URL) -> _File:
        """Made if it is not there. Raises OSError."""
        if not url.database or url.database == ":memory:":
            raise ValueError(
                "an SQLite database needs a file: its readers and its writer are separate connections"
            )
        path = Path(url.database)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch()
        return cls(path, identity_of(path))

    def require(self) -> None:
        """Raises FailedPrecondition if it is no longer there."""
        try:
            if identity_of(self.path) == self.identity:
                return
        except OSError as error:
            raise moved() from error
        raise moved()

    def require_writable(self) -> None:
        """Raises FailedPrecondition: a file system can become read-only under open connections."""
        self.require()
        if not (os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)):
            raise read_only()


def _sqlite_engines(url: URL) -> tuple[AsyncEngine, AsyncEngine, AsyncEngine]:
    """For reads, for writes, and for checks, which wait for neither."""
    url = url.set(drivername="sqlite+aiosqlite")
    arguments = {"timeout": _BUSY_TIMEOUT_S, "async_creator_fn": _connect_sqlite}
    reader = create_async_engine(url, connect_args=arguments, pool_size=8, max_overflow=0)
    # One connection: the writers of this process queue for it in order, instead of polling for SQLite's lock.
    writer = create_async_engine(url, connect_args=arguments, pool_size=1, max_overflow=0, pool_timeout=60)
    checker = create_async_engine(url, connect_args=arguments, pool_size=1, max_overflow=0)
    for engine in (reader, checker):
        _prepare(engine, "BEGIN", "PRAGMA query_only = ON")
    # A plain BEGIN takes the lock at the first write, when what was read before may be stale already.
    _prepare(writer, "BEGIN IMMEDIATE")
    return reader, writer, checker


def _prepare(engine: AsyncEngine, begin: str, *pragmas: str) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connected(dbapi_connection: Any, _record: Any) -> None:
        # The driver begins no transactions by itself: `begun` does.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        for pragma in (
            f"PRAGMA journal_mode = {'WAL' if _WAL_IS_SAFE else 'DELETE'}",
            "PRAGMA synchronous = FULL",
            "PRAGMA foreign_keys = ON",
            # What is deleted or replaced leaves no bytes behind in the page.
            "PRAGMA secure_delete = FAST",
            *pragmas,
        ):
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql(begin)


def _postgresql_engines(url: URL, schema: str) -> tuple[AsyncEngine, AsyncEngine, AsyncEngine]:
    """As `_sqlite_engines`."""
    # Statements here are short, and compiling one that looks long takes longer than running it.
    both = f"-csearch_path={schema} -ctimezone=UTC -cjit=off"
    # Connections of their own for readers: one that is switched for a read and back stays read-only for the
    # next writer if its task is cancelled in between.
    snapshot = "-cdefault_transaction_read_only=on -cdefault_transaction_isolation=repeatable\\ read"

    patience = {name: value for name, value in _PATIENCE.items() if name not in url.query}

    # Four services with all of theirs stay below PostgreSQL's default of 100 connections. None go beyond the
    # size of the pool: those are closed after each use, and opening one takes longer than its use.
    def engine(options: str, size: int = 10, **arguments: Any) -> AsyncEngine:
        return create_async_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={"options": options} | patience,
            pool_pre_ping=True,
            pool_size=size,
            max_overflow=0,
            **arguments,
        )

    reads = f"{both} {snapshot}"
    return engine(reads), engine(both, isolation_level="SERIALIZABLE"), engine(reads, size=1)
