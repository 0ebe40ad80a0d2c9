"""What a transaction changes in a project: every change goes into the history with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from sqlalchemy import ColumnElement, and_, delete, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh import idempotency
from neuroweaver.mesh.errors import AlreadyExists, InvalidArgument
from neuroweaver.registry import audit, records, tables
from neuroweaver.registry.audit import Head, Origin
from neuroweaver.registry.model import Model, ModelVersion
from neuroweaver.registry.reader import Reader
from neuroweaver.registry.versions import precedence

M = TypeVar("M", bound=Message)

# With it, one version is a message below the limit of 4 MiB.
MAX_RECORD_CHARACTERS: Final = 2 * 1024 * 1024


class Writer(Reader):
    """A write transaction. Every change is written into the history with it."""

    def __init__(self, connection: AsyncConnection, origin: Origin, head: Head, now: datetime) -> None:
        super().__init__(connection, origin.project)
        self._origin = origin
        self._head = head
        self.now = now

    async def once(
        self,
        method: str,
        request_id: str,
        request: Message,
        response_type: type[M],
        operation: Callable[[], Awaitable[M]],
    ) -> M:
        """The answer of `operation`, or the one given to this request before. Raises InvalidArgument."""
        return await idempotency.once(
            self._connection,
            project=self._project,
            method=method,
            request_id=request_id,
            request=request,
            response_type=response_type,
            operation=operation,
        )

    async def add_model(self, model: Model) -> Model:
        """Raises AlreadyExists, also for a hidden model."""
        if await self._model(model.model_id):
            raise AlreadyExists("model", model.model_id)
        return await self._save_model("model.registered", None, model)

    async def save_model(self, action: str, before: Model, after: Model) -> Model:
        """Puts `after` in the place of `before`, which was read in this transaction."""
        return await self._save_model(action, before, after)

    async def add_version(self, version: ModelVersion) -> ModelVersion:
        """Raises AlreadyExists, also for a hidden version and one that differs in build metadata alone."""
        if await self._version(version.model_id, version.version):
            raise AlreadyExists("model version", version.name)
        return await self._save_version("version.created", None, version)

    async def save_version(self, action: str, before: ModelVersion, after: ModelVersion) -> ModelVersion:
        """Puts `after` in the place of `before`, which was read in this transaction."""
        return await self._save_version(action, before, after)

    async def _save_model(self, action: str, before: Model | None, after: Model) -> Model:
        after = replace(after, update_time=self.now, etag=str(self._head.sequence + 1))
        table = tables.models
        values = {"delete_time": after.delete_time, "record": _dumped(replace(after, latest_version=""))}
        key = {"project": self._project, "model_id": after.model_id}
        if before is None:
            await self._connection.execute(insert(table).values(**key, **values))
        else:
            await self._connection.execute(update(table).where(_equal(table, key)).values(**values))
        await self._save_tags(after.model_id, "", after.tags)
        await self._record(action, before, after, "")
        return after

    async def _save_version(
        self, action: str, before: ModelVersion | None, after: ModelVersion
    ) -> ModelVersion:
        after = replace(after, update_time=self.now, etag=str(self._head.sequence + 1))
        table = tables.versions
        key = {"project": self._project, "model_id": after.model_id, "precedence": precedence(after.version)}
        values = {
            "version": str(after.version),
            "is_prerelease": after.version.prerelease is not None,
            "state": after.state.value,
            "create_time": after.create_time,
            "delete_time": after.delete_time,
            "record": _dumped(after),
        }
        if before is None:
            await self._connection.execute(insert(table).values(**key, **values))
        else:
            await self._connection.execute(update(table).where(_equal(table, key)).values(**values))
        await self._save_tags(after.model_id, key["precedence"], after.tags)
        await self._record(action, before, after, str(after.version))
        return after

    async def _save_tags(self, model_id: str, place: str, tags: Mapping[str, str]) -> None:
        table = tables.tags
        key = {"project": self._project, "model_id": model_id, "precedence": place}
        await self._connection.execute(delete(table).where(_equal(table, key)))
        if tags:
            rows = [key | {"name": name, "value": value} for name, value in tags.items()]
            await self._connection.execute(insert(table), rows)

    async def _record(
        self, action: str, before: Model | ModelVersion | None, after: Model | ModelVersion, version: str
    ) -> None:
        event = audit.next_event(
            self._head,
            self._origin,
            time=self.now,
            action=action,
            model_id=after.model_id,
            version=version,
            changes=records.changes(before, after),
        )
        await self._connection.execute(insert(tables.audit_events).values(**vars(event)))
        await self._connection.execute(
            insert(tables.model_events).values(
                project=self._project,
                sequence=event.sequence,
                time=event.time,
                action=action,
                model_id=after.model_id,
                subject="version" if version else "model",
                record=_dumped(after),
            )
        )
        self._head = Head(event.sequence, event.hash)
        await self._connection.execute(
            update(tables.audit_heads)
            .where(tables.audit_heads.c.project == self._project)
            .values(sequence=self._head.sequence, hash=self._head.hash)
        )


def _equal(table: Any, key: Mapping[str, Any]) -> ColumnElement[bool]:
    return and_(*(table.c[name] == value for name, value in key.items()))


def _dumped(subject: Model | ModelVersion) -> str:
    text = records.dump(subject)
    if len(text) > MAX_RECORD_CHARACTERS:
        raise InvalidArgument(
            "", f"all together this is larger than {MAX_RECORD_CHARACTERS} characters of JSON"
        )
    return text
