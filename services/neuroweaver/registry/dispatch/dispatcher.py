"""Sends what waits in the webhooks' outbox: in order to each, no receiver delaying another.

At least once: a process that dies between the receiver's answer and its own record of it sends again, under
the same webhook-id. Any number of processes may run a dispatcher over one database.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.loop import Outage, repeat
from neuroweaver.mesh.handlers.signals import Signal
from neuroweaver.mesh.wire.clock import Clock, utc_now
from neuroweaver.mesh.wire.ids import new_id
from neuroweaver.registry import messages
from neuroweaver.registry.dispatch.sender import Sender
from neuroweaver.registry.domain import webhook
from neuroweaver.registry.domain.sealing import Seal, SealBroken
from neuroweaver.registry.domain.webhook import Backoff, Delivery, Outcome, State
from neuroweaver.registry.storage import deliveries
from neuroweaver.registry.storage.deliveries import Lane, lane_of
from neuroweaver.registry.storage.reader import Reader

_LOG: Final = logging.getLogger("neuroweaver.registry")

_STOPPED: Final = Outcome.failed("the server stopped while it waited for the answer")
_LOST: Final = Outcome.failed("the sending server stopped before it recorded the answer")
_FORGOTTEN: Final = Outcome.failed("the change no longer exists", is_final=True)
_SEALED_OTHERWISE: Final = Outcome.failed("the secret was sealed with another key than this server has")
_FAULT: Final = Outcome.failed("internal error; see the server's log")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """concurrency: deliveries under way at once; with more slow receivers than that, all wait for them.

    lease_s: how long a claim is respected; longer than an attempt and its note can take. poll_s: how late
    another process's changes are found.
    """

    concurrency: int = 8
    lease_s: float = 60.0
    poll_s: float = 1.0
    backoff: Backoff = field(default_factory=Backoff)


class Dispatcher:
    """A claim is lost by silence that this process has observed, never by comparing clocks.

    changed: notified after commits, so that nothing waits for the next poll.
    """

    def __init__(
        self,
        database: Database,
        sender: Sender,
        seal: Seal,
        *,
        changed: Signal | None = None,
        policy: Policy | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self._database = database
        self._sender = sender
        self._seal = seal
        self._changed = changed or Signal()
        self._policy = policy or Policy()
        self._clock = clock
        self._sending: dict[Lane, Delivery] = {}
        self._seen: dict[str, float] = {}
        self._notes = Outage("webhook notes")

    async def run(self) -> None:
        """Until cancelled; then what is under way is noted as failed, and is sent again soon."""
        async with asyncio.TaskGroup() as group:
            turn = partial(self._round, group)
            await repeat("webhooks", turn, self._policy.poll_s, wake=self._changed)

    async def _round(self, group: asyncio.TaskGroup) -> float:
        """Begins what is due; returns the seconds until something may be due again."""
        async with self._database.read() as connection:
            claimed = await deliveries.claimed(connection)
            waiting = await deliveries.waiting(connection)
        await self._end_lost(claimed)
        now = self._clock()
        busy = {lane_of(delivery) for delivery in claimed} | self._sending.keys()
        due = [delivery for delivery in waiting if delivery.is_due(now) and lane_of(delivery) not in busy]
        for delivery in await self._claim(due[: self._policy.concurrency - len(self._sending)], now):
            self._sending[lane_of(delivery)] = delivery
            group.create_task(self._tend(delivery))
        later = [
            (delivery.next_attempt_time - now).total_seconds()
            for delivery in waiting
            if delivery.next_attempt_time and not delivery.is_due(now)
        ]
        return min([self._policy.poll_s, *later])

    async def _claim(self, due: Sequence[Delivery], now: datetime) -> list[Delivery]:
        if not due:
            return []

        async def work(connection: AsyncConnection) -> list[Delivery]:
            claimed = [
                await deliveries.claim(connection, lane_of(delivery), new_id(), now) for delivery in due
            ]
            return [delivery for delivery in claimed if delivery]

        return await self._database.transact(work)

    async def _end_lost(self, claimed: Sequence[Delivery]) -> None:
        """Takes back the claims that have stood for too long; this process's own too, if it sends no more."""
        mine = {delivery.claim for delivery in self._sending.values()}
        foreign = {
            delivery.claim: delivery for delivery in claimed if delivery.claim and delivery.claim not in mine
        }
        now = time.monotonic()
        self._seen = {claim: self._seen.get(claim, now) for claim in foreign}
        for claim, delivery in foreign.items():
            if now - self._seen[claim] >= self._policy.lease_s:
                await self._settle(delivery, _LOST)

    async def _tend(self, delivery: Delivery) -> None:
        """Sends one delivery and notes what became of it. A note that fails is left to the lease."""
        outcome = _STOPPED
        try:
            outcome = await self._attempt(delivery)
            await self._note(delivery, outcome)
        except asyncio.CancelledError:
            await self._note(delivery, outcome)  # once more does no harm
            raise
        finally:
            del self._sending[lane_of(delivery)]
            self._changed.notify()

    async def _attempt(self, delivery: Delivery) -> Outcome:
        try:
            async with self._database.read() as connection:
                target = await deliveries.secret_of(connection, lane_of(delivery))
                events = await Reader(connection, delivery.project).events(delivery.sequence - 1, 1)
            if target is None or not events or events[0].sequence != delivery.sequence:
                return _FORGOTTEN
            url, sealed = target
            secret = self._seal.open(sealed, *lane_of(delivery))
            body = webhook.body_of(messages.from_event(events[0]))
            timestamp = int(self._clock().timestamp())
            headers = webhook.headers(secret, delivery.message_id, timestamp, body)
            return await self._sender.post(url, headers, body)
        except SealBroken:
            return _SEALED_OTHERWISE
        except Exception:  # noqa: BLE001  one delivery that cannot be sent must not end the others
            _LOG.exception("webhook delivery failed", extra=_named(delivery))
            return _FAULT

    async def _note(self, delivery: Delivery, outcome: Outcome) -> None:
        with self._notes.survived():
            await self._settle(delivery, outcome)

    async def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        async def work(connection: AsyncConnection) -> Delivery | None:
            return await deliveries.settle(connection, delivery, outcome, self._clock(), self._policy.backoff)

        ended = await self._database.transact(work)
        if ended and ended.state is State.DEAD:
            _LOG.warning(
                "webhook delivery given up",
                extra={**_named(ended), "status": ended.last_status, "error": ended.last_error},
            )


def _named(delivery: Delivery) -> dict[str, object]:
    return {
        "project": delivery.project,
        "webhook_id": delivery.webhook_id,
        "sequence": delivery.sequence,
    }
