"""Inserts that meet a row of the same key, in both dialects."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import Insert as PostgresqlInsert
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert
from sqlalchemy.ext.asyncio import AsyncConnection

Insert = SqliteInsert | PostgresqlInsert
Row = Mapping[str, Any]


def insert_new(connection: AsyncConnection, table: Table) -> Insert:
    """An insert that leaves a row of the same key as it is.

    It waits for a rival's insert, then conflicts as the isolation level says: `Database.transact` tries
    again.
    """
    return _insert(connection, table).on_conflict_do_nothing()


async def upsert(
    connection: AsyncConnection,
    table: Table,
    rows: Row | Sequence[Row],
    changing: Collection[str] | None = None,
) -> None:
    """Writes rows, also over those that have their keys already.

    changing: the columns that an existing row takes over; by default all but the key.
    """
    statement = _insert(connection, table)
    keys = [column.name for column in table.primary_key]
    names = [column.name for column in table.c if column.name not in keys] if changing is None else changing
    written = {name: statement.excluded[name] for name in names}
    if rows:
        await connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=written), rows)


def _insert(connection: AsyncConnection, table: Table) -> Insert:
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
