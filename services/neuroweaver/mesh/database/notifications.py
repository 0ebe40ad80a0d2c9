"""Changes told by PostgreSQL: NOTIFY in the transaction of the change, one LISTEN a process."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from typing import Any, Final

import psycopg
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from neuroweaver.mesh.database.changes import POLL_S, Changed, Changes
from neuroweaver.mesh.database.row_revisions import IMPATIENT
from neuroweaver.mesh.wire.ids import new_id

_LOG: Final = logging.getLogger("neuroweaver.changes")

_NOTIFY: Final = "SELECT pg_notify(%s, %s || topic) FROM unnest(%s::text[]) AS topic"


class Notifications(Changes):
    """arguments: of psycopg's connect. reader: of the same database, for while nothing is heard."""

    def __init__(self, arguments: Mapping[str, Any], schema: str, reader: AsyncEngine) -> None:
        self._arguments = {**arguments, **IMPATIENT, "autocommit": True}
        self._reader = reader
        # The services of one database hear only their own.
        self._channel = f"neuroweaver.{schema}"
        # Before each topic: what a process said itself is no news to it.
        self._sender = new_id()
        self._is_deaf = False

    async def announce(self, connection: AsyncConnection, topics: Collection[str]) -> None:
        if topics:
            await connection.exec_driver_sql(_NOTIFY, (self._channel, f"{self._sender} ", sorted(topics)))

    def doubt(self) -> None:
        """Under a new name, this process hears what it said under the old one."""
        self._sender = new_id()

    async def heard(self) -> AsyncGenerator[Changed, None]:
        while True:
            try:
                async with aclosing(self._listen()) as changes:
                    async for topics in changes:
                        yield topics
            except (psycopg.Error, OSError) as error:
                if not self._is_deaf:
                    cause = {"cause": type(error).__name__}
                    _LOG.warning("changes of other processes not heard at once", extra=cause)
                self._is_deaf = True
            # What may have been missed is read again when listening begins anew. Until then all is read now
            # and then, unless nothing can be read at all.
            await asyncio.sleep(random.uniform(0.5, 1) * POLL_S)
            if await self._is_readable():
                yield None

    async def _listen(self) -> AsyncGenerator[Changed, None]:
        async with await psycopg.AsyncConnection.connect(**self._arguments) as connection:
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
            if self._is_deaf:
                _LOG.info("changes of other processes heard again")
            self._is_deaf = False
            yield None
            async with aclosing(connection.notifies()) as notifications:
                async for notification in notifications:
                    sender, _, topic = notification.payload.partition(" ")
                    if sender != self._sender:
                        yield [topic]

    async def _is_readable(self) -> bool:
        try:
            async with self._reader.connect() as connection:
                await connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            return False
        return True
