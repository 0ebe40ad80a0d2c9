"""How a process hears of what other processes commit, without reading again and again what did not change.

A commit names its topics, such as a job. PostgreSQL tells other processes with the commit (`notifications`).
SQLite tells a connection only that others have committed to the file: `PRAGMA data_version`, asked on the one
connection with which this process writes, stays the same for its own commits.
https://www.sqlite.org/pragma.html#pragma_data_version
"""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection
from typing import Final

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

POLL_S: Final = 1.0

Changed = Collection[str] | None
"""Those that changed; None: any may have."""


class Changes(ABC):
    @abstractmethod
    async def announce(self, connection: AsyncConnection, topics: Collection[str]) -> None:
        """To be called in a write transaction: with its commit, other processes hear that these changed."""

    @abstractmethod
    def doubt(self) -> None:
        """A transaction in which this process announced something ended, and may yet be committed."""

    @abstractmethod
    def heard(self) -> AsyncGenerator[Changed, None]:
        """What others changed, without end and whatever becomes of the database; None first, and wherever
        something may have been missed.
        """


class FileChanges(Changes):
    """writer: its pool holds one connection, and all that this process writes goes through it."""

    def __init__(self, writer: AsyncEngine, *, poll_s: float = POLL_S) -> None:
        self._writer = writer
        self._poll_s = poll_s

    async def announce(self, connection: AsyncConnection, topics: Collection[str]) -> None:
        """The commit itself says it."""

    def doubt(self) -> None:
        """It is over: an operation on a file ends before whoever asked for it goes."""

    async def heard(self) -> AsyncGenerator[Changed, None]:
        seen: tuple[object, int] | None = None
        while True:
            version = await self._version()
            if version is not None and version != seen:
                seen = version
                yield None
            await asyncio.sleep(self._poll_s)

    async def _version(self) -> tuple[object, int] | None:
        """The connection, whose own the number is, and the number; None if it cannot be had now."""
        try:
            async with self._writer.connect() as connection:
                driver = (await connection.get_raw_connection()).driver_connection
                assert driver is not None
                ((number,),) = await driver.execute_fetchall("PRAGMA data_version")
        except (SQLAlchemyError, sqlite3.Error):
            return None
        return driver, number
