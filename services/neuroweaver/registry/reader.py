"""What a transaction reads of a project: model objects, never rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from semver import Version
from sqlalchemy import ColumnElement, Row, Select, case, exists, func, null, select
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.errors import InvalidArgument, NotFound, Unimplemented
from neuroweaver.mesh.pagination import Key, Page
from neuroweaver.registry import audit, filters, records, tables
from neuroweaver.registry.audit import AuditEvent, Head
from neuroweaver.registry.model import Model, ModelVersion, State
from neuroweaver.registry.versions import (
    Level,
    Range,
    first,
    is_range,
    line_end,
    parse,
    parse_range,
    precedence,
    raised,
)

# A page ends early where its records grow large: as a message it stays below the limit of 4 MiB.
_PAGE_CHARACTERS: Final = 1024 * 1024


@dataclass(frozen=True)
class Event:
    """A change. subject: as it was after the change; None if it is nothing the watch asked for."""

    sequence: int
    time: datetime | None = None
    action: str = ""
    subject: Model | ModelVersion | None = None


class Reader:
    """What one transaction sees of a project."""

    def __init__(self, connection: AsyncConnection, project: str) -> None:
        self._connection = connection
        self._project = project

    async def model(self, model_id: str, *, show_deleted: bool = False) -> Model:
        """Raises NotFound."""
        found = await self._model(model_id)
        if found is None or (found.delete_time and not show_deleted):
            raise NotFound("model", model_id)
        return found

    async def models(
        self, page: Page, terms: Sequence[filters.Term] = (), *, show_deleted: bool = False
    ) -> tuple[list[Model], str]:
        """A page by model id, and the token of the next one. terms: of tags."""
        table = tables.models
        statement = _models().where(table.c.project == self._project, *_tagged(table, terms))
        if not show_deleted:
            statement = statement.where(table.c.delete_time.is_(None))
        rows, token = await self._page(page, statement, [table.c.model_id], lambda row: (row.model_id,))
        return [_model(row) for row in rows], token

    async def version(self, model_id: str, version: Version, *, show_deleted: bool = False) -> ModelVersion:
        """Exactly this version; without build metadata, whichever has its precedence. Raises NotFound."""
        found = await self._version(model_id, version)
        if (
            found is None
            or (found.delete_time and not show_deleted)
            or (version.build and version.build != found.version.build)
        ):
            raise NotFound("model version", f"{model_id}@{version}")
        return found

    async def latest(self, model_id: str) -> ModelVersion | None:
        """The version of highest precedence; None if there is none."""
        return await self._highest(model_id, tables.versions.c.delete_time.is_(None))

    async def selected(self, model_id: str, selector: str) -> ModelVersion:
        """The version that a version, `latest` or a range names. Raises NotFound, InvalidArgument."""
        if selector.startswith("@"):
            raise Unimplemented("this server has no aliases yet; name a version, `latest` or a range")
        await self.model(model_id)
        if selector == "latest":
            found = await self.latest(model_id)
        elif is_range(selector):
            within = _within(parse_range("version", selector))
            found = await self._highest(model_id, tables.versions.c.delete_time.is_(None), *within)
        else:
            return await self.version(model_id, parse("version", selector))
        if found is None:
            raise NotFound("model version", f"{model_id}@{selector}")
        return found

    async def versions(
        self,
        model_id: str,
        page: Page,
        *,
        order_by: str = "version desc",
        terms: Sequence[filters.Term] = (),
        show_deleted: bool = False,
    ) -> tuple[list[ModelVersion], str]:
        """A page of versions and the token of the next one.

        order_by: `version desc`, `version` or `create_time desc`. terms: of `state`, `range` and tags.
        Raises InvalidArgument for a range or a state that is none.
        """
        table = tables.versions
        statement = select(table).where(
            table.c.project == self._project, table.c.model_id == model_id, *_version_terms(terms)
        )
        if not show_deleted:
            statement = statement.where(table.c.delete_time.is_(None))
        by_time = order_by == "create_time desc"
        columns = [table.c.create_time, table.c.precedence] if by_time else [table.c.precedence]
        rows, token = await self._page(
            page,
            statement,
            columns,
            lambda row: (row.create_time, row.precedence) if by_time else (row.precedence,),
            descending=order_by != "version",
        )
        return [records.load_version(row.record) for row in rows], token

    async def next_version(
        self,
        model_id: str,
        level: Level,
        base: ModelVersion | None,
        *,
        label: str,
        build: str = "",
    ) -> Version:
        """The first version after `base` that is not taken, hidden ones included; without a base, the first.

        Inside a write transaction it is still free when the transaction ends.
        """
        candidate = raised(base.version, level, label, build) if base else first(level, label, build)
        while await self._version(model_id, candidate):
            column = tables.versions.c.precedence
            line = (column >= precedence(candidate), column < line_end(candidate, level))
            taken = await self._highest(model_id, *line)
            candidate = raised(taken.version if taken else candidate, level, label, build)
        return candidate

    async def history(
        self, page: Page, *, model_id: str = "", version: str = "", terms: Sequence[filters.Term] = ()
    ) -> tuple[list[AuditEvent], str]:
        """A page of audit events: newest first for one model, else in the order of the chain.

        version: of the model, as it is spelled in the events. terms: of `actor`, `action` and `model_id`.
        """
        table = tables.audit_events
        equal = (
            dict(terms)
            | ({"model_id": model_id} if model_id else {})
            | ({"version": version} if version else {})
        )
        statement = select(table).where(
            table.c.project == self._project, *(table.c[name] == value for name, value in equal.items())
        )
        rows, token = await self._page(
            page,
            statement,
            [table.c.sequence],
            lambda row: (row.sequence,),
            "changes",
            descending=bool(model_id),
        )
        return [AuditEvent(**row._mapping) for row in rows], token

    async def verified(self, expected: Head | None = None) -> audit.Verdict:
        """Whether the audit chain is whole."""
        table = tables.audit_events
        statement = select(table).where(table.c.project == self._project).order_by(table.c.sequence)
        recorded = await head(self._connection, self._project) or Head()
        return await audit.verify(self._audit_events(statement), recorded, expected)

    async def events(self, after: int, limit: int, model_id: str = "") -> list[Event]:
        """The events after a sequence, in order. With `model_id`, other models' come without a subject."""
        table = tables.model_events
        record = (
            case((table.c.model_id == model_id, table.c.record), else_=null()) if model_id else table.c.record
        )
        statement = (
            select(table.c.sequence, table.c.time, table.c.action, table.c.subject, record.label("record"))
            .where(table.c.project == self._project, table.c.sequence > after)
            .order_by(table.c.sequence)
            .limit(limit)
        )
        rows, _ = await self._bounded(statement)
        return [Event(row.sequence, row.time, row.action, _subject(row.subject, row.record)) for row in rows]

    async def _model(self, model_id: str) -> Model | None:
        table = tables.models
        statement = _models().where(table.c.project == self._project, table.c.model_id == model_id)
        row = (await self._connection.execute(statement)).one_or_none()
        return _model(row) if row else None

    async def _version(self, model_id: str, version: Version) -> ModelVersion | None:
        return await self._highest(model_id, tables.versions.c.precedence == precedence(version))

    async def _highest(self, model_id: str, *conditions: ColumnElement[bool]) -> ModelVersion | None:
        table = tables.versions
        statement = (
            select(table.c.record)
            .where(table.c.project == self._project, table.c.model_id == model_id, *conditions)
            .order_by(table.c.precedence.desc())
            .limit(1)
        )
        record = (await self._connection.execute(statement)).scalar_one_or_none()
        return records.load_version(record) if record else None

    async def _page(
        self,
        page: Page,
        statement: Select[Any],
        columns: Sequence[ColumnElement[Any]],
        key: Callable[[Row[Any]], Key],
        text: str = "record",
        *,
        descending: bool = False,
    ) -> tuple[Sequence[Row[Any]], str]:
        rows, is_cut = await self._bounded(page.apply(statement, *columns, descending=descending), text)
        if is_cut:
            page = replace(page, size=len(rows) - 1)
        return page.cut(rows, key)

    async def _bounded(self, statement: Select[Any], text: str = "record") -> tuple[list[Row[Any]], bool]:
        """The rows up to the one with which their texts together grow too long; whether it came to that."""
        rows: list[Row[Any]] = []
        characters = 0
        async with self._connection.stream(statement.execution_options(yield_per=64)) as result:
            async for row in result:
                rows.append(row)
                characters += len(getattr(row, text) or "")
                if characters > _PAGE_CHARACTERS and len(rows) > 1:
                    return rows, True
        return rows, False

    async def _audit_events(self, statement: Select[Any]) -> AsyncIterator[AuditEvent]:
        async with self._connection.stream(statement.execution_options(yield_per=64)) as result:
            async for row in result:
                yield AuditEvent(**row._mapping)


async def head(connection: AsyncConnection, project: str, *, for_update: bool = False) -> Head | None:
    """Where the store says that the audit chain ends; None before its first event."""
    table = tables.audit_heads
    statement = select(table.c.sequence, table.c.hash).where(table.c.project == project)
    row = (await connection.execute(statement.with_for_update() if for_update else statement)).one_or_none()
    return Head(row.sequence, row.hash) if row else None


def _models() -> Select[Any]:
    """Models with the version of highest precedence that is not hidden."""
    versions = tables.versions
    latest = (
        select(versions.c.version)
        .where(
            versions.c.project == tables.models.c.project,
            versions.c.model_id == tables.models.c.model_id,
            versions.c.delete_time.is_(None),
        )
        .order_by(versions.c.precedence.desc())
        .limit(1)
        .scalar_subquery()
    )
    return select(tables.models.c.model_id, tables.models.c.record, func.coalesce(latest, "").label("latest"))


def _model(row: Row[Any]) -> Model:
    return replace(records.load_model(row.record), latest_version=row.latest)


def _subject(kind: str, record: str | None) -> Model | ModelVersion | None:
    if record is None:
        return None
    return records.load_version(record) if kind == "version" else records.load_model(record)


def _version_terms(terms: Iterable[filters.Term]) -> Iterable[ColumnElement[bool]]:
    for name, value in terms:
        if name == "range":
            yield from _within(parse_range("filter", value))
        elif name == "state":
            if value not in State.__members__:
                raise InvalidArgument("filter", f"names a state that is none of {', '.join(State)}")
            yield tables.versions.c.state == value
        else:
            yield from _tagged(tables.versions, [(name, value)])


def _within(wanted: Range) -> Sequence[ColumnElement[bool]]:
    table = tables.versions
    bounds = [table.c.precedence >= wanted.lower, table.c.precedence < wanted.upper]
    return bounds if wanted.with_prereleases else [*bounds, table.c.is_prerelease.is_(False)]


def _tagged(table: Any, terms: Iterable[filters.Term]) -> Iterable[ColumnElement[bool]]:
    """That a model or a version has every one of these tags."""
    tags = tables.tags
    place = table.c.precedence if "precedence" in table.c else ""
    return [
        exists().where(
            tags.c.project == table.c.project,
            tags.c.model_id == table.c.model_id,
            tags.c.precedence == place,
            tags.c.name == name.removeprefix(filters.TAGS),
            tags.c.value == value,
        )
        for name, value in terms
    ]
