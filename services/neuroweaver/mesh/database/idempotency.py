"""A mutation that is retried with its `request_id` happens once, and the retry reads the first answer."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.message import Message
from sqlalchemy import (
    Column,
    ColumnElement,
    LargeBinary,
    MetaData,
    String,
    Table,
    and_,
    delete,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.database.database import UtcDateTime
from neuroweaver.mesh.database.upsert import insert_new
from neuroweaver.mesh.wire.clock import utc_now
from neuroweaver.mesh.wire.errors import Aborted, InvalidArgument

TABLE_NAME: Final = "idempotency"

M = TypeVar("M", bound=Message)


def columns() -> list[Column[Any]]:
    """Fresh columns, for a service's MetaData (`table`) and for its migration (`op.create_table`)."""
    return [
        Column("project", String(128), primary_key=True),
        Column("method", String(128), primary_key=True),
        Column("request_id", String(128), primary_key=True),
        Column("request_digest", LargeBinary(32), nullable=False),
        Column("response", LargeBinary, nullable=False),
        Column("created_at", UtcDateTime, nullable=False, index=True),
    ]


def table(metadata: MetaData) -> Table:
    return Table(TABLE_NAME, metadata, *columns())


_ANSWERS: Final = table(MetaData())
CREATED_AT: Final[Column[Any]] = _ANSWERS.c.created_at


class Transaction(Protocol):
    """A transaction of a project."""

    @property
    def connection(self) -> AsyncConnection: ...
    @property
    def project(self) -> str: ...


async def once(
    transaction: Transaction,
    method: str,
    request: Any,
    response_type: type[M],
    operation: Callable[[], Awaitable[M]],
) -> M:
    """The answer of `operation`, run in this write transaction if it has not been answered before.

    request: with its `request_id`; an empty one just runs the operation. The answer is committed together
    with what the operation did; if it raises, nothing is kept and a retry runs it. Use it inside
    `Database.transact`: of two calls that race, the slower one is run again and then reads the answer of the
    faster.

    Raises InvalidArgument if `request_id` was used with another request.
    """
    if not request.request_id:
        return await operation()
    known = await answered(transaction, method, request, response_type)
    if known is not None:
        return known

    # Claimed before the operation runs, so that the slower of two stops here and not halfway through it.
    connection, key = transaction.connection, (transaction.project, method, request.request_id)
    claim = insert_new(connection, _ANSWERS).values(
        project=key[0],
        method=key[1],
        request_id=key[2],
        request_digest=_digest(request),
        response=b"",
        created_at=utc_now(),
    )
    if (await connection.execute(claim.returning(_ANSWERS.c.request_id))).one_or_none() is None:
        raise Aborted("CONCURRENT_UPDATE", "the same request is being answered; call again")
    response = await operation()
    await connection.execute(
        update(_ANSWERS).where(_key(*key)).values(response=response.SerializeToString(deterministic=True))
    )
    return response


async def answered(transaction: Transaction, method: str, request: Any, response_type: type[M]) -> M | None:
    """The answer given to this request before; None if there is none yet.

    Raises InvalidArgument if `request_id` was used with another request.
    """
    if not request.request_id:
        return None
    statement = select(_ANSWERS).where(_key(transaction.project, method, request.request_id))
    known = (await transaction.connection.execute(statement)).one_or_none()
    if known is None:
        return None
    if known.request_digest != _digest(request):
        raise InvalidArgument("request_id", "was used before with a different request")
    return response_type.FromString(known.response)


def _key(project: str, method: str, request_id: str) -> ColumnElement[bool]:
    return and_(
        _ANSWERS.c.project == project, _ANSWERS.c.method == method, _ANSWERS.c.request_id == request_id
    )


def _digest(request: Message) -> bytes:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


async def forget(connection: AsyncConnection, before: datetime) -> int:
    """Drops the answers given before a moment, whose retries would run again. Returns the number dropped."""
    return (await connection.execute(delete(_ANSWERS).where(_ANSWERS.c.created_at < before))).rowcount
