"""Pages of lists. A page ends early where its texts grow large: as a message it stays below 4 MiB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.database.pagination import Page

_PAGE_CHARACTERS: Final = 1024 * 1024


async def paged(
    connection: AsyncConnection,
    page: Page,
    statement: Select[Any],
    order: Sequence[ColumnElement[Any]],
    key: Sequence[str],
    *,
    text: str = "record",
    descending: bool = False,
) -> tuple[Sequence[Row[Any]], str]:
    """The rows of the page, and the token of the next one.

    order: columns that are unique together. key: how a row names them. text: of the column that grows large.
    """
    rows, is_cut = await bounded(connection, page.apply(statement, *order, descending=descending), text)
    if is_cut:
        page = replace(page, size=len(rows) - 1)
    return page.cut(rows, lambda row: tuple(getattr(row, name) for name in key))


async def bounded(
    connection: AsyncConnection, statement: Select[Any], text: str = "record"
) -> tuple[list[Row[Any]], bool]:
    """The rows up to the one with which their texts together grow too long; whether it came to that."""
    rows: list[Row[Any]] = []
    characters = 0
    async with connection.stream(statement.execution_options(yield_per=64)) as result:
        async for row in result:
            rows.append(row)
            characters += len(getattr(row, text) or "")
            if characters > _PAGE_CHARACTERS and len(rows) > 1:
                return rows, True
    return rows, False
