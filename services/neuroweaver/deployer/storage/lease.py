"""Who runs the loop when several deployers share a database: a row that its holder keeps alive.

A holder is gone when its row has not moved for a while by the clock of whoever waits; no two clocks are
compared. One that ran on this machine is gone as soon as its process is. Each new holder raises the token,
and whatever a holder writes is refused once it is another's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.deployer.storage import tables
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.upsert import insert_new
from neuroweaver.mesh.handlers.loop import Outage
from neuroweaver.mesh.machine.processes import is_gone, own_name
from neuroweaver.mesh.wire.ids import new_id

_LOG: Final = logging.getLogger("neuroweaver.deployer")

NAME: Final = "reconcile"
BEAT_S: Final = 2.0
SILENCE_S: Final = 10.0
# A holder is called by its process and, as there may be several in one, something of its own.
_BEHIND: Final = "/"
_UNIQUE: Final = 16


class LeaseLost(Exception):
    """Another deployer holds the lease now: what was about to be written is not."""


@dataclass(frozen=True)
class Lease:
    token: int

    async def require(self, connection: AsyncConnection) -> None:
        """Raises LeaseLost; else nobody takes the lease before this transaction ends."""
        table = tables.leases
        statement = select(table.c.token).where(table.c.lease == NAME).with_for_update(read=True)
        if (await connection.execute(statement)).scalar_one_or_none() != self.token:
            raise LeaseLost


class LeaseHolder:
    """One process's claim on the lease.

    is_alone: it is known otherwise that no other process of this database lives, so that a lease which one
    left behind is taken at once.
    """

    def __init__(
        self,
        database: Database,
        *,
        beat_s: float = BEAT_S,
        silence_s: float = SILENCE_S,
        is_alone: bool = False,
    ) -> None:
        self._is_alone = is_alone
        self._database = database
        self._holder = f"{own_name()}{_BEHIND}{new_id()[-_UNIQUE:]}"
        self._beat_s = beat_s
        self._silence_s = silence_s
        self._outage = Outage("lease")

    async def run(self, lead: Callable[[Lease], Awaitable[None]]) -> None:
        """Runs `lead` while this process holds the lease, again after it was lost. Until cancelled."""
        while True:
            lease = await self._acquired()
            _LOG.info("lease taken", extra={"token": lease.token})
            leading = asyncio.ensure_future(lead(lease))
            beating = asyncio.ensure_future(self._beat(lease))
            try:
                await asyncio.wait({leading, beating}, return_when=asyncio.FIRST_COMPLETED)
                if leading.done() and not _is_lost(leading.exception()):
                    leading.result()
                    return
            finally:
                await _ended(leading, beating)
                await self._release(lease)
            _LOG.warning("lease lost", extra={"token": lease.token})

    async def _acquired(self) -> Lease:
        """Waits until the lease is free, or its holder has been silent for long."""
        seen, since = None, time.monotonic()
        while True:
            with self._outage.survived():
                state = await self._state()
                if state != seen:
                    seen, since = state, time.monotonic()
                is_free = self._is_alone or state is None or not state[0] or _has_died(state[0])
                if is_free or time.monotonic() - since >= self._silence_s:
                    taken = await self._database.transact(partial(self._take, seen=state))
                    if taken is not None:
                        return taken
            await asyncio.sleep(self._outage.backoff_s or self._beat_s / 2)

    async def _state(self) -> tuple[str, int, int] | None:
        """Holder, token and beat."""
        table = tables.leases
        async with self._database.read() as connection:
            row = (await connection.execute(select(table).where(table.c.lease == NAME))).one_or_none()
        return (row.holder, row.token, row.beat) if row else None

    async def _take(self, connection: AsyncConnection, seen: tuple[str, int, int] | None) -> Lease | None:
        """None if somebody was faster."""
        table = tables.leases
        if seen is None:
            claim = insert_new(connection, table).values(lease=NAME, holder=self._holder, token=1, beat=0)
            claimed = await connection.execute(claim.returning(table.c.token))
            return Lease(1) if claimed.one_or_none() else None
        token = seen[1]
        is_unmoved = tuple_(table.c.holder, table.c.token, table.c.beat) == seen
        done = await connection.execute(
            update(table)
            .where(table.c.lease == NAME, is_unmoved)
            .values(holder=self._holder, token=token + 1, beat=0)
        )
        return Lease(token + 1) if done.rowcount else None

    async def _beat(self, lease: Lease) -> None:
        """Ends when the lease is another's, or before it could be: what runs in a cluster is not fenced by a
        database, so the work must stop first.
        """
        renewed = time.monotonic()
        while (left_s := 0.8 * self._silence_s - (time.monotonic() - renewed)) > 0:
            await asyncio.sleep(min(self._beat_s, left_s))
            begun = time.monotonic()
            with self._outage.survived():
                async with asyncio.timeout(0.8 * self._silence_s - (begun - renewed)):
                    is_ours = await self._update(lease, beat=tables.leases.c.beat + 1)
                if not is_ours:
                    return
                renewed = begun

    async def _release(self, lease: Lease) -> None:
        """So that another need not wait. What fails here is found by silence."""
        with self._outage.survived():
            await self._update(lease, holder="")

    async def _update(self, lease: Lease, **values: object) -> bool:
        """False if it is another's by now."""
        table = tables.leases
        statement = update(table).where(table.c.lease == NAME, table.c.token == lease.token).values(**values)

        async def work(connection: AsyncConnection) -> bool:
            return bool((await connection.execute(statement)).rowcount)

        return await self._database.transact(work)


def _has_died(holder: str) -> bool:
    return is_gone(holder.rpartition(_BEHIND)[0])


def _is_lost(error: BaseException | None) -> bool:
    """Also for a group of tasks that all lost it."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(LeaseLost)[1] is None
    return isinstance(error, LeaseLost)


async def _ended(*tasks: asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
