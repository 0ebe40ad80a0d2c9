"""What a transaction reads of a project: model objects, never rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from semver import Version
from sqlalchemy import ColumnElement, Row, Select, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers import filters
from neuroweaver.mesh.wire.errors import NotFound
from neuroweaver.registry.domain import records
from neuroweaver.registry.domain.aliases import Alias, check_alias
from neuroweaver.registry.domain.history import AuditEvent, Head, Verdict, verify
from neuroweaver.registry.domain.model import Model, ModelVersion, State
from neuroweaver.registry.domain.records import Event, Subject
from neuroweaver.registry.domain.versions import (
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
from neuroweaver.registry.storage import tables
from neuroweaver.registry.storage.listing import ModelList, VersionList
from neuroweaver.registry.storage.pages import bounded, paged


class Reader:
    """What one transaction sees of a project."""

    def __init__(self, connection: AsyncConnection, project: str) -> None:
        self.connection = connection
        self.project = project

    async def model(self, model_id: str, *, show_deleted: bool = False) -> Model:
        """Raises NotFound, which tells of a hidden one that it was deleted."""
        model = await self._model(model_id)
        if model is None or (model.delete_time and not show_deleted):
            raise NotFound("model", model_id, **(model.tombstone() if model else {}))
        return model

    async def models(
        self, page: Page, terms: Sequence[filters.Term] = (), *, show_deleted: bool = False
    ) -> tuple[list[Model], str]:
        """A page by model id, and the token of the next one. terms: of tags."""
        wanted = ModelList(self.project, terms)
        statement, order = await self._listed(wanted, _models())
        if not show_deleted:
            statement = statement.where(tables.models.c.delete_time.is_(None))
        rows, token = await paged(self.connection, page, statement, order, ["model_id"])
        return [_model(row) for row in rows], token

    async def version(self, model_id: str, version: Version, *, show_deleted: bool = False) -> ModelVersion:
        """Exactly this version; without build metadata, whichever has its precedence.

        Raises NotFound, also for a version of a hidden model.
        """
        await self.model(model_id, show_deleted=show_deleted)
        return await self._exact(model_id, version, show_deleted=show_deleted)

    async def _exact(self, model_id: str, version: Version, *, show_deleted: bool = False) -> ModelVersion:
        stored = await self._version(model_id, version)
        if stored is None or (version.build and version.build != stored.version.build):
            raise NotFound("model version", f"{model_id}@{version}")
        if stored.delete_time and not show_deleted:
            raise NotFound("model version", stored.name, **stored.tombstone())
        return stored

    async def parent(self, version: ModelVersion) -> ModelVersion | None:
        """What a version was made from, hidden or not; None for the first."""
        if not version.parent_version:
            return None
        return await self._version(version.model_id, parse("parent_version", version.parent_version))

    async def latest(self, model_id: str, *conditions: ColumnElement[bool]) -> ModelVersion | None:
        """The version of highest precedence that is not hidden; None if there is none."""
        return await self._highest(model_id, tables.versions.c.delete_time.is_(None), *conditions)

    async def selected(self, model_id: str, selector: str, field: str = "version") -> ModelVersion:
        """The version that a version, `latest`, a range or an `@alias` names.

        Raises NotFound, or InvalidArgument naming `field`.
        """
        await self.model(model_id)
        if selector.startswith("@"):
            check_alias(field, selector[1:])
            return await self.pointed_at(model_id, selector[1:])
        if selector == "latest":
            version = await self.latest(model_id)
        elif is_range(selector):
            version = await self.latest(model_id, *_within(parse_range(field, selector)))
        else:
            return await self._exact(model_id, parse(field, selector))
        if version is None:
            raise NotFound("model version", f"{model_id}@{selector}")
        return version

    async def alias(self, model_id: str, alias: str) -> Alias | None:
        """Where an alias points now; None if it does not exist."""
        current = await self.aliases(model_id, tables.alias_spans.c.alias == alias)
        return current[0] if current else None

    async def aliases(self, model_id: str, *conditions: ColumnElement[bool]) -> list[Alias]:
        """Of a model, by name."""
        table = tables.alias_spans
        statement = (
            select(table)
            .where(
                table.c.project == self.project,
                table.c.model_id == model_id,
                table.c.until.is_(None),
                *conditions,
            )
            .order_by(table.c.alias)
        )
        return [
            Alias(
                model_id=row.model_id,
                alias=row.alias,
                version=Version.parse(row.version),
                is_protected=row.is_protected,
                actor=row.actor,
                update_time=row.since,
            )
            for row in await self.connection.execute(statement)
        ]

    async def pointed_at(self, model_id: str, alias: str, at: datetime | None = None) -> ModelVersion:
        """The version behind an alias, now or at a moment of the past, when it may since have been hidden.

        Raises NotFound.
        """
        spans = tables.alias_spans
        versions = _versions().join(
            spans,
            and_(
                spans.c.project == tables.versions.c.project,
                spans.c.model_id == tables.versions.c.model_id,
                spans.c.precedence == tables.versions.c.precedence,
            ),
        )
        # The span that began last before the moment is the one, if it had not ended by then.
        statement = (
            versions.add_columns(spans.c.until)
            .where(
                spans.c.project == self.project,
                spans.c.model_id == model_id,
                spans.c.alias == alias,
                spans.c.until.is_(None) if at is None else spans.c.since <= at,
            )
            .order_by(spans.c.since.desc(), spans.c.sequence.desc())
            .limit(1)
        )
        row = (await self.connection.execute(statement)).one_or_none()
        if row is None or (at and row.until and row.until <= at):
            raise NotFound("alias", f"{model_id}@{alias}")
        return _version(row)

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
        Raises InvalidArgument for an invalid range or state.
        """
        by_time = order_by == "create_time desc"
        descending = order_by != "version"
        wanted = VersionList.of(self.project, model_id, terms, by_time=by_time)
        wanted = wanted.beyond(page.after, descending=descending)
        statement, order = await self._listed(wanted, _versions())
        if not show_deleted:
            statement = statement.where(tables.versions.c.delete_time.is_(None))
        key = ["create_time", "precedence"] if by_time else ["precedence"]
        rows, token = await paged(self.connection, page, statement, order, key, descending=descending)
        return [_version(row) for row in rows], token

    async def all_versions(self, model_id: str) -> list[ModelVersion]:
        """Those that are not hidden, in order of precedence."""
        table = tables.versions
        statement = (
            _versions()
            .where(
                table.c.project == self.project, table.c.model_id == model_id, table.c.delete_time.is_(None)
            )
            .order_by(table.c.precedence)
        )
        return [_version(row) for row in await self.connection.execute(statement)]

    async def deployed(self, model_id: str) -> ModelVersion | None:
        """A version that serves traffic, the highest; None if there is none."""
        return await self.latest(model_id, tables.versions.c.state == State.DEPLOYED.value)

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
        given = {"model_id": model_id, "version": version}
        equal = dict(terms) | {name: value for name, value in given.items() if value}
        statement = select(table).where(
            table.c.project == self.project, *(table.c[name] == value for name, value in equal.items())
        )
        rows, token = await paged(
            self.connection,
            page,
            statement,
            [table.c.sequence],
            ["sequence"],
            text="changes",
            descending=bool(model_id),
        )
        return [AuditEvent(**row._mapping) for row in rows], token

    async def verified(self, expected: Head | None = None) -> Verdict:
        """Whether the audit chain is whole."""
        heads = tables.audit_heads
        statement = select(heads.c.sequence, heads.c.hash).where(heads.c.project == self.project)
        row = (await self.connection.execute(statement)).one_or_none()
        return await verify(self._audit_events(), Head(*row) if row else Head(), expected)

    async def event_bounds(self) -> tuple[int, int]:
        """The oldest sequence kept and the newest one; (1, 0) before the first event."""
        sequence = tables.model_events.c.sequence
        statement = select(func.min(sequence), func.max(sequence)).where(
            tables.model_events.c.project == self.project
        )
        oldest, newest = (await self.connection.execute(statement)).one()
        return oldest or 1, newest or 0

    async def events(self, after: int, limit: int, model_id: str = "") -> list[Event]:
        """The events after a sequence, in order: of one model, or of all."""
        table = tables.model_events
        statement = select(table.c.sequence, table.c.time, table.c.action, table.c.subject, table.c.record)
        statement = statement.where(table.c.project == self.project, table.c.sequence > after)
        if model_id:
            statement = statement.where(table.c.model_id == model_id)
        statement = statement.order_by(table.c.sequence).limit(limit)
        rows, _ = await bounded(self.connection, statement)
        return [Event(row.sequence, row.time, row.action, _subject(row.subject, row.record)) for row in rows]

    async def _model(self, model_id: str) -> Model | None:
        table = tables.models
        statement = _models().where(table.c.project == self.project, table.c.model_id == model_id)
        row = (await self.connection.execute(statement)).one_or_none()
        return _model(row) if row else None

    async def _version(self, model_id: str, version: Version) -> ModelVersion | None:
        return await self._highest(model_id, tables.versions.c.precedence == precedence(version))

    async def _highest(self, model_id: str, *conditions: ColumnElement[bool]) -> ModelVersion | None:
        table = tables.versions
        statement = (
            _versions()
            .where(table.c.project == self.project, table.c.model_id == model_id, *conditions)
            .order_by(table.c.precedence.desc())
            .limit(1)
        )
        row = (await self.connection.execute(statement)).one_or_none()
        return _version(row) if row else None

    async def _listed(
        self, wanted: ModelList | VersionList, base: Select[Any]
    ) -> tuple[Select[Any], Sequence[ColumnElement[Any]]]:
        """The list, and the columns that put it in order."""
        await self._keep_to_indexes(True)
        question = wanted.counts()
        counts = () if question is None else (await self.connection.execute(question)).one()
        if wanted.is_sorted(counts):
            await self._keep_to_indexes(False)
        return wanted.ordered(base, counts)

    async def _keep_to_indexes(self, is_kept: bool) -> None:
        """PostgreSQL takes terms for independent. It expects a few rows, and to join and sort them all."""
        if self.connection.dialect.name == "postgresql":
            names = ("enable_sort", "enable_incremental_sort", "enable_material")
            value = "off" if is_kept else "on"
            await self.connection.execute(select(*(func.set_config(name, value, True) for name in names)))

    async def _audit_events(self) -> AsyncIterator[AuditEvent]:
        table = tables.audit_events
        statement = select(table).where(table.c.project == self.project).order_by(table.c.sequence)
        async with self.connection.stream(statement.execution_options(yield_per=64)) as result:
            async for row in result:
                yield AuditEvent(**row._mapping)


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
    return replace(records.load(Model, row.record), latest_version=row.latest)


def _versions() -> Select[Any]:
    """Versions with the names of the aliases that point at them."""
    table, spans = tables.versions, tables.alias_spans
    names = (
        select(func.aggregate_strings(spans.c.alias, ","))
        .where(
            spans.c.project == table.c.project,
            spans.c.model_id == table.c.model_id,
            spans.c.precedence == table.c.precedence,
            spans.c.until.is_(None),
        )
        .correlate(table)
        .scalar_subquery()
    )
    return select(
        table.c.record, table.c.precedence, table.c.create_time, func.coalesce(names, "").label("aliases")
    )


def _version(row: Row[Any]) -> ModelVersion:
    version = records.load(ModelVersion, row.record)
    return replace(version, aliases=tuple(sorted(row.aliases.split(",")))) if row.aliases else version


_KINDS: Final[dict[type[Subject], str]] = {Model: "model", ModelVersion: "version", Alias: "alias"}
_CLASSES: Final = {name: kind for kind, name in _KINDS.items()}


def kind_of(subject: Subject | None) -> str:
    """How the events of watches name what happened to what; `none` where no watch is told."""
    return _KINDS[type(subject)] if subject else "none"


def _subject(kind: str, record: str | None) -> Subject | None:
    return records.load(_CLASSES[kind], record) if record else None


def _within(wanted: Range) -> Sequence[ColumnElement[bool]]:
    table = tables.versions
    bounds = [table.c.precedence >= wanted.lower, table.c.precedence < wanted.upper]
    return bounds if wanted.with_prereleases else [*bounds, table.c.is_prerelease.is_(False)]
