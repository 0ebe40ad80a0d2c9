"""The past of aliases after a clock that ran ahead was set back."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.registry.storage import tables

_KEY: Final = ("project", "model_id", "alias", "since", "sequence")
_INSTANT: Final = timedelta(microseconds=1)


async def bring_back(connection: AsyncConnection, project: str, now: datetime) -> None:
    """Has the spans that begin or end after now do so just before it, in their order."""
    table = tables.alias_spans
    ahead = select(table).where(table.c.project == project, or_(table.c.since > now, table.c.until > now))
    rows = (await connection.execute(ahead.order_by(table.c.sequence))).all()
    for number, row in enumerate(rows):
        latest = now - (len(rows) - number) * _INSTANT
        until = row.until and min(row.until, latest + _INSTANT)
        await connection.execute(
            update(table).where(*_is(row)).values(since=min(row.since, latest), until=until)
        )


def _is(row: Row[Any]) -> list[Any]:
    return [tables.alias_spans.c[name] == getattr(row, name) for name in _KEY]
