"""What a database's refusals mean: one table a dialect."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Final

from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from neuroweaver.mesh.wire.errors import (
    Aborted,
    DataLoss,
    Error,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
)


def as_error(error: SQLAlchemyError) -> Error | None:
    """What a caller is told of a database's refusal; None where it is a fault of ours."""
    if isinstance(error, PoolTimeout):
        return _busy()
    kind = _kind_of(error) if isinstance(error, DBAPIError) else None
    return kind() if kind else None


def _busy() -> Error:
    return Unavailable("the database is busy")


def _away() -> Error:
    return Unavailable("the database cannot be reached")


def _disk_full() -> Error:
    return ResourceExhausted("the server's disk is full")


def read_only() -> Error:
    return FailedPrecondition("DATABASE_READ_ONLY", "the database is read-only")


def moved() -> Error:
    return FailedPrecondition("DATABASE_MOVED", "the database's file was moved, replaced or deleted")


def _forbidden() -> Error:
    return FailedPrecondition("DATABASE_FORBIDS", "the database denies the service what it needs")


def _corrupt() -> Error:
    return DataLoss("the database is corrupt", reason="DATABASE_CORRUPT")


def _unopened() -> Error:
    return Unavailable("the database's files cannot be opened")


def _unreadable() -> Error:
    return Unavailable("the database's files cannot be read or written")


def _conflict() -> Error:
    return Aborted("CONCURRENT_UPDATE", "another call changed the same records; call again")


# https://www.sqlite.org/rescode.html. The primary codes; an extended one holds its own in its low byte.
_OF_SQLITE: Final[Mapping[int, Callable[[], Error]]] = {
    sqlite3.SQLITE_READONLY_DBMOVED: moved,
    sqlite3.SQLITE_FULL: _disk_full,
    sqlite3.SQLITE_BUSY: _busy,
    sqlite3.SQLITE_LOCKED: _busy,
    sqlite3.SQLITE_PROTOCOL: _busy,
    sqlite3.SQLITE_CANTOPEN: _unopened,  # its journal too is a file: a disk can lack inodes
    sqlite3.SQLITE_IOERR: _unreadable,
    sqlite3.SQLITE_READONLY: read_only,
    sqlite3.SQLITE_PERM: read_only,
    sqlite3.SQLITE_CORRUPT: _corrupt,
    sqlite3.SQLITE_NOTADB: _corrupt,
}
# SQLSTATEs by their beginnings, https://www.postgresql.org/docs/current/errcodes-appendix.html
_OF_POSTGRESQL: Final[Mapping[str, Callable[[], Error]]] = {
    "08": _away,  # connection_exception
    "25006": read_only,  # a standby, or a server that was set so
    "25P": _away,  # cut for being idle
    "40001": _conflict,
    "40P01": _conflict,
    "42501": _forbidden,
    "53100": _disk_full,
    "53": _busy,  # insufficient_resources
    "55P03": _busy,  # lock_not_available
    "57014": _busy,  # statement_timeout
    "57P0": _away,  # going down, or starting up
    "58": _unreadable,  # system_error
    "XX001": _corrupt,
    "XX002": _corrupt,
}


def _kind_of(error: DBAPIError) -> Callable[[], Error] | None:
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", None) or 0
        return _OF_SQLITE.get(code) or _OF_SQLITE.get(code & 0xFF)
    state = _sqlstate(error)
    kinds = [kind for beginning, kind in _OF_POSTGRESQL.items() if state.startswith(beginning)]
    if not kinds and (error.connection_invalidated or _is_connect_failure(error)):
        return _away
    return kinds[0] if kinds else None


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def is_conflict(error: DBAPIError) -> bool:
    """Whether another writer was in the way, so that the same transaction may succeed now."""
    kind = _kind_of(error)
    return kind is _conflict or (kind is _busy and isinstance(error.orig, sqlite3.Error))


def _is_connect_failure(error: DBAPIError) -> bool:
    """The driver's failure to connect, or a connection cut: its own OperationalError, without an SQLSTATE."""
    is_sqlite = isinstance(error.orig, sqlite3.Error)
    return isinstance(error, OperationalError) and not is_sqlite and not _sqlstate(error)
