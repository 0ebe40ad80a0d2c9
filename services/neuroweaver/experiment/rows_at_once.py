"""Many rows of binary columns in one statement. The names of tables and columns are never a caller's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

# SQLite takes at most 32766 values in a statement.
_AT_ONCE: Final = 10_000


async def prepare(connection: AsyncConnection) -> None:
    """Lets SQLite keep the pages that many rows touch: what leaves its cache early is synced by itself."""
    if _is_sqlite(connection):
        await connection.exec_driver_sql("PRAGMA cache_size = -65536")  # KiB


async def known(connection: AsyncConnection, table: str, key: str, keys: Sequence[bytes]) -> set[bytes]:
    """Those of the keys that the table has."""
    return {bytes(row[0]) for row in await select(connection, table, [key], keys)}


async def select(
    connection: AsyncConnection, table: str, columns: Sequence[str], keys: Sequence[bytes]
) -> list[Any]:
    """The rows with these values in the first of the columns, in no order."""
    found: list[Any] = []
    wanted = f"SELECT {', '.join(columns)} FROM {table} WHERE {columns[0]}"  # noqa: S608
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        if _is_sqlite(connection):
            marks = ",".join("?" * len(part))
            result = await connection.exec_driver_sql(f"{wanted} IN ({marks})", tuple(part))
        else:
            result = await connection.exec_driver_sql(f"{wanted} = ANY(%b::bytea[])", (list(part),))
        found += result.all()
    return found


async def insert(
    connection: AsyncConnection, table: str, columns: Sequence[str], values: Sequence[Sequence[bytes]]
) -> None:
    """values: of each column in turn. A row whose first column is known already is replaced."""
    if not values[0]:
        return
    names = ", ".join(columns)
    if _is_sqlite(connection):
        marks = ", ".join("?" * len(columns))
        statement = f"INSERT INTO {table} ({names}) VALUES ({marks}){_replacing(columns)}"  # noqa: S608
        await connection.exec_driver_sql(statement, list(zip(*values, strict=True)))
        return
    arrays = ", ".join(["%b::bytea[]"] * len(columns))
    statement = f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays})"  # noqa: S608
    statement += _replacing(columns)
    await connection.exec_driver_sql(statement, tuple(list(each) for each in values))


async def delete(connection: AsyncConnection, table: str, key: str, keys: Sequence[bytes]) -> None:
    unwanted = f"DELETE FROM {table} WHERE {key}"  # noqa: S608
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        if _is_sqlite(connection):
            marks = ",".join("?" * len(part))
            await connection.exec_driver_sql(f"{unwanted} IN ({marks})", tuple(part))
        else:
            await connection.exec_driver_sql(f"{unwanted} = ANY(%b::bytea[])", (list(part),))


def _replacing(columns: Sequence[str]) -> str:
    if len(columns) == 1:
        return ""
    changes = ", ".join(f"{name} = excluded.{name}" for name in columns[1:])
    return f" ON CONFLICT ({columns[0]}) DO UPDATE SET {changes}"


def _is_sqlite(connection: AsyncConnection) -> bool:
    return connection.dialect.name == "sqlite"
