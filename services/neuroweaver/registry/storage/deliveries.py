"""Where webhooks and what is on its way to them are kept.

`enqueue` belongs into the transaction of the change: what is committed is sent, and nothing else. Of one
webhook, one delivery is claimed at a time, in the order of the changes; a dead letter holds up nobody. What
writes is run by `Database.transact`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, and_, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.wire.errors import AlreadyExists, NotFound, ResourceExhausted
from neuroweaver.registry.domain.history import AuditEvent
from neuroweaver.registry.domain.sealing import Seal, is_sealed
from neuroweaver.registry.domain.webhook import (
    MAX_WEBHOOKS,
    Backoff,
    Delivery,
    Outcome,
    State,
    Webhook,
    WebhookStatus,
)
from neuroweaver.registry.storage import tables
from neuroweaver.registry.storage.pages import paged

_WEBHOOKS: Final = tables.webhooks
_TABLE: Final = tables.webhook_deliveries

# Without the secret, which only `secret_of` reads.
_PUBLIC: Final = [column for column in _WEBHOOKS.c if column.name != "secret"]

_OPEN: Final = (State.PENDING.value, State.DEAD.value)

Lane = tuple[str, str]
"""A webhook: its project and its id. What is sent to it is sent one after the other."""


async def add(connection: AsyncConnection, project: str, webhook: Webhook, sealed: str) -> None:
    """sealed: the webhook's secret. Raises AlreadyExists, and ResourceExhausted where there are too many."""
    taken = (
        await connection.execute(select(_WEBHOOKS.c.webhook_id).where(_WEBHOOKS.c.project == project))
    ).scalars()
    ids = set(taken)
    if webhook.webhook_id in ids:
        raise AlreadyExists("webhook", webhook.webhook_id)
    if len(ids) >= MAX_WEBHOOKS:
        raise ResourceExhausted(f"a project has at most {MAX_WEBHOOKS} webhooks; delete one")
    values = vars(webhook) | {"actions": json.dumps(webhook.actions)}
    await connection.execute(insert(_WEBHOOKS).values(project=project, secret=sealed, **values))


async def remove(connection: AsyncConnection, project: str, webhook_id: str) -> WebhookStatus:
    """Drops a webhook with its deliveries; returns its last status. Raises NotFound."""
    last = await status(connection, project, webhook_id)
    await connection.execute(delete(_TABLE).where(_of(_TABLE, (project, webhook_id))))
    await connection.execute(delete(_WEBHOOKS).where(_of(_WEBHOOKS, (project, webhook_id))))
    return last


async def status(connection: AsyncConnection, project: str, webhook_id: str) -> WebhookStatus:
    """Raises NotFound."""
    row = (await connection.execute(select(*_PUBLIC).where(_of(_WEBHOOKS, (project, webhook_id))))).first()
    if row is None:
        raise NotFound("webhook", webhook_id)
    return await _status(connection, row)


async def webhooks(connection: AsyncConnection, project: str) -> list[WebhookStatus]:
    """A project's, by id."""
    statement = select(*_PUBLIC).where(_WEBHOOKS.c.project == project).order_by(_WEBHOOKS.c.webhook_id)
    return [await _status(connection, row) for row in (await connection.execute(statement)).all()]


async def secret_of(connection: AsyncConnection, lane: Lane) -> tuple[str, str] | None:
    """The URL of a webhook, and the sealed secret that signs what is sent there. None if it is gone."""
    statement = select(_WEBHOOKS.c.url, _WEBHOOKS.c.secret).where(_of(_WEBHOOKS, lane))
    row = (await connection.execute(statement)).first()
    return (row.url, row.secret) if row else None


async def seal_secrets(connection: AsyncConnection, seal: Seal) -> list[str]:
    """Seals what an earlier version stored; returns the webhooks whose secret this seal cannot open."""
    strangers = []
    secrets = select(_WEBHOOKS.c.project, _WEBHOOKS.c.webhook_id, _WEBHOOKS.c.secret)
    for row in (await connection.execute(secrets)).all():
        lane = (row.project, row.webhook_id)
        if not is_sealed(row.secret):
            sealed = seal.seal(row.secret, *lane)
            await connection.execute(update(_WEBHOOKS).where(_of(_WEBHOOKS, lane)).values(secret=sealed))
        elif not seal.opens(row.secret, *lane):
            strangers.append(row.webhook_id)
    return strangers


async def enqueue(connection: AsyncConnection, event: AuditEvent) -> None:
    """Has a change sent to every webhook that wants it."""
    rows = await connection.execute(select(*_PUBLIC).where(_WEBHOOKS.c.project == event.project))
    wanting = [
        webhook for webhook in map(_webhook, rows.all()) if webhook.wants(event.action, event.model_id)
    ]
    if wanting:
        deliveries = [
            Delivery(
                project=event.project,
                webhook_id=webhook.webhook_id,
                sequence=event.sequence,
                action=event.action,
                create_time=event.time,
                next_attempt_time=event.time,
            )
            for webhook in wanting
        ]
        await connection.execute(insert(_TABLE), list(map(_row, deliveries)))


async def page(
    connection: AsyncConnection, project: str, webhook_id: str, page: Page, state: State | None = None
) -> tuple[list[Delivery], str]:
    """A page of a webhook's deliveries, newest first, and the token of the next one. Raises NotFound."""
    await status(connection, project, webhook_id)
    statement = select(_TABLE).where(_of(_TABLE, (project, webhook_id)))
    if state:
        statement = statement.where(_TABLE.c.state == state.value)
    rows, token = await paged(
        connection, page, statement, [_TABLE.c.sequence], ["sequence"], text="last_error", descending=True
    )
    return list(map(_delivery, rows)), token


async def redeliver(
    connection: AsyncConnection, project: str, webhook_id: str, sequence: int, now: datetime
) -> int:
    """Sends dead letters again: this one, or all for 0. Returns their number.

    They come before what is still pending, since they happened before it. Raises NotFound for a webhook or a
    delivery that is not there.
    """
    await status(connection, project, webhook_id)
    chosen = _of(_TABLE, (project, webhook_id))
    if sequence:
        chosen = and_(chosen, _TABLE.c.sequence == sequence)
        if (await connection.execute(select(_TABLE.c.sequence).where(chosen))).first() is None:
            raise NotFound("webhook delivery", f"{webhook_id}/{sequence}")
    statement = (
        update(_TABLE)
        .where(chosen, _TABLE.c.state == State.DEAD.value)
        .values(state=State.PENDING.value, attempts=0, next_attempt_time=now)
    )
    return (await connection.execute(statement)).rowcount


async def forget(connection: AsyncConnection, before: datetime) -> int:
    """Drops what was delivered before a moment; dead letters stay. Returns the number dropped."""
    done = and_(_TABLE.c.state == State.DELIVERED.value, _TABLE.c.last_attempt_time < before)
    return (await connection.execute(delete(_TABLE).where(done))).rowcount


async def oldest_needed(connection: AsyncConnection) -> dict[str, int]:
    """By project: the first event that is still to be sent, or may be again. From there on all are kept."""
    statement = (
        select(_TABLE.c.project, func.min(_TABLE.c.sequence).label("oldest"))
        .where(_TABLE.c.state.in_(_OPEN))
        .group_by(_TABLE.c.project)
    )
    return {row.project: row.oldest for row in (await connection.execute(statement)).all()}


async def waiting(connection: AsyncConnection) -> list[Delivery]:
    """The next delivery of every webhook that has one, of all projects: what has been due longest first."""
    earlier = _TABLE.alias()
    next_one = (
        select(func.min(earlier.c.sequence))
        .where(
            earlier.c.project == _WEBHOOKS.c.project,
            earlier.c.webhook_id == _WEBHOOKS.c.webhook_id,
            earlier.c.state == State.PENDING.value,
        )
        .scalar_subquery()
    )
    # An outer join, though what finds nothing is dropped: without statistics SQLite would turn an inner one
    # round, and look at every delivery that there ever was.
    statement = select(_TABLE).select_from(
        _WEBHOOKS.outerjoin(
            _TABLE,
            and_(
                _TABLE.c.project == _WEBHOOKS.c.project,
                _TABLE.c.webhook_id == _WEBHOOKS.c.webhook_id,
                _TABLE.c.sequence == next_one,
            ),
        )
    )
    rows = (await connection.execute(statement)).all()
    waiting_now = [_delivery(row) for row in rows if row.sequence is not None]
    return sorted(waiting_now, key=lambda delivery: delivery.next_attempt_time or delivery.create_time)


async def claimed(connection: AsyncConnection) -> list[Delivery]:
    """What some sender is at, of all projects."""
    return await _deliveries(connection, select(_TABLE).where(_TABLE.c.claim.is_not(None)))


async def claim(connection: AsyncConnection, lane: Lane, claim: str, now: datetime) -> Delivery | None:
    """Takes a webhook's next delivery. None if there is none, none is due, or a sender is at one."""
    mine = select(_TABLE).where(_of(_TABLE, lane))
    if await _deliveries(connection, mine.where(_TABLE.c.claim.is_not(None))):
        return None
    pending = mine.where(_TABLE.c.state == State.PENDING.value).order_by(_TABLE.c.sequence).limit(1)
    upcoming = await _deliveries(connection, pending)
    if not upcoming or not upcoming[0].is_due(now):
        return None
    taken = upcoming[0].claimed(claim, now)
    await _save(connection, taken)
    return taken


async def settle(
    connection: AsyncConnection, delivery: Delivery, outcome: Outcome, now: datetime, backoff: Backoff
) -> Delivery | None:
    """Notes what became of a claimed delivery. None if the claim was lost meanwhile, or the webhook."""
    mine = and_(
        _of(_TABLE, lane_of(delivery)),
        _TABLE.c.sequence == delivery.sequence,
        _TABLE.c.claim == delivery.claim,
    )
    held = await _deliveries(connection, select(_TABLE).where(mine))
    if not held:
        return None
    ended = held[0].ended(outcome, now, backoff)
    await _save(connection, ended)
    return ended


def lane_of(delivery: Delivery) -> Lane:
    return delivery.project, delivery.webhook_id


async def _status(connection: AsyncConnection, row: Row[Any]) -> WebhookStatus:
    mine = _of(_TABLE, (row.project, row.webhook_id))
    counted = await connection.execute(
        select(_TABLE.c.state, func.count().label("number"))
        .where(mine, _TABLE.c.state.in_(_OPEN))
        .group_by(_TABLE.c.state)
    )
    numbers: dict[str, int] = {row.state: row.number for row in counted.all()}
    # One that is being sent right now has no outcome yet.
    last = (
        select(_TABLE.c.last_error)
        .where(mine, _TABLE.c.last_attempt_time.is_not(None), _TABLE.c.claim.is_(None))
        .order_by(_TABLE.c.last_attempt_time.desc(), _TABLE.c.sequence.desc())
        .limit(1)
    )
    return WebhookStatus(
        _webhook(row),
        numbers.get(State.PENDING.value, 0),
        numbers.get(State.DEAD.value, 0),
        (await connection.execute(last)).scalar_one_or_none() or "",
    )


async def _save(connection: AsyncConnection, delivery: Delivery) -> None:
    key = and_(_of(_TABLE, lane_of(delivery)), _TABLE.c.sequence == delivery.sequence)
    await connection.execute(update(_TABLE).where(key).values(**_row(delivery)))


async def _deliveries(connection: AsyncConnection, statement: Select[Any]) -> list[Delivery]:
    rows: Sequence[Row[Any]] = (await connection.execute(statement)).all()
    return list(map(_delivery, rows))


def _row(delivery: Delivery) -> dict[str, Any]:
    return vars(delivery) | {"state": delivery.state.value}


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(**dict(row._mapping) | {"state": State(row.state)})


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(
        webhook_id=row.webhook_id,
        url=row.url,
        actions=tuple(json.loads(row.actions)),
        model_id=row.model_id,
        create_time=row.create_time,
    )


def _of(table: Any, lane: Lane) -> ColumnElement[bool]:
    project, webhook_id = lane
    return and_(table.c.project == project, table.c.webhook_id == webhook_id)
