"""Whether anything was written since a moment ago, learned for a small part of what reading it again costs.

    revision = await revisions.of(project)      # before the read begins
    async with database.read() as connection:
        answer = …                              # of rows of this project alone
    …
    await revisions.of(project) == revision     # then `answer` is what a read would give now

Why that holds, whichever process writes: a revision changes with every commit and never comes back. The read
began after the first revision was taken, so it saw all that was committed by then. If the second is equal,
nothing was committed between the two, neither before the read nor after it: what was read is the state at the
second. A commit that was acknowledged before the second was asked for is part of that state. A revision taken
after the read would prove nothing: what was committed while the read was under way would count as seen.

SQLite tells a connection how often others have committed to the file (`PRAGMA data_version`). Asked on one
that never writes, that is every commit. The number belongs to the connection, so this one is never opened
again. It is read from the file under SQLite's own lock: while a writer replaces pages there is no answer, and
what a crash left half-written is rolled back first. The file must stay where it is, as SQLite demands of
everyone who uses it. https://www.sqlite.org/pragma.html#pragma_data_version

PostgreSQL has nothing like it that costs nothing. There a service names rows which its writers change in the
transaction of every change, the heads of its projects' histories, and they are read as last committed. A head
is the hash of a chain, so it does not come back even if a backup is restored. What moves no head, such as a
migration, is not noticed.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Hashable
from pathlib import Path

Revision = Hashable


def uri_of(file: Path) -> str:
    """Of an SQLite file that is there: where it was deleted, it is not made anew, empty."""
    return f"{file.absolute().as_uri()}?mode=rw"


def identity_of(file: Path) -> tuple[int, int]:
    """Of a file, whatever its name. Raises OSError."""
    found = file.stat()
    return found.st_dev, found.st_ino


class Revisions(ABC):
    """Used from the event loop that the database is used from."""

    @abstractmethod
    async def of(self, key: str) -> Revision | None:
        """A value that stays the same only while no change of `key` is committed; None if it cannot be told.

        key: a project, for instance. The changes of other keys may count as well.
        """

    @abstractmethod
    async def close(self) -> None:
        """From here on nothing can be told."""


class FileRevisions(Revisions):
    """Of an SQLite file, whatever the key. A few system calls, and no change of thread."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._cursor: sqlite3.Cursor | None = None
        self._identity: tuple[int, int] | None = None
        self._is_closed = False

    async def of(self, key: str) -> Revision | None:
        del key
        if self._is_closed:
            return None
        try:
            cursor = self._cursor or self._open()
            if identity_of(self._file) != self._identity:
                return None
            # With the only row the statement is at its end, and lets go of the lock that writers wait for.
            (count,) = cursor.execute("PRAGMA data_version").fetchone()
        # Locked, most likely; an ordinary read waits, or says what is wrong.
        except (sqlite3.DatabaseError, OSError):
            return None
        revision: int = count
        return revision

    def _open(self) -> sqlite3.Cursor:
        # Without a timeout: waiting for a lock would hold up the event loop.
        connection = sqlite3.connect(uri_of(self._file), uri=True, timeout=0, isolation_level=None)
        connection.execute("PRAGMA query_only = ON")
        self._identity = identity_of(self._file)
        self._cursor = connection.cursor()
        return self._cursor

    async def close(self) -> None:
        self._is_closed = True
        if self._cursor:
            self._cursor.connection.close()
            self._cursor = None
