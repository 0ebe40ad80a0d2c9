"""What a transaction changes in a project: every change goes into the history with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Table, and_, delete, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.database.upsert import upsert
from neuroweaver.mesh.wire.errors import AlreadyExists, InvalidArgument
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.mesh.wire.threads import in_thread
from neuroweaver.registry.domain import history, records
from neuroweaver.registry.domain.aliases import Alias
from neuroweaver.registry.domain.history import AuditEvent, Head
from neuroweaver.registry.domain.model import Model, ModelVersion
from neuroweaver.registry.domain.records import FieldDifference, Subject
from neuroweaver.registry.domain.versions import precedence
from neuroweaver.registry.storage import deliveries, tables
from neuroweaver.registry.storage.reader import Reader, kind_of

# With it, one version is a message below the limit of 4 MiB.
MAX_RECORD_CHARACTERS: Final = 2 * 1024 * 1024


class Writer(Reader):
    """A write transaction. Every change is written into the history with it."""

    def __init__(self, connection: AsyncConnection, origin: ChangeOrigin, head: Head, now: datetime) -> None:
        super().__init__(connection, origin.project)
        self.origin = origin
        self._head = head
        self.now = now

    async def add_model(self, model: Model) -> Model:
        """Raises AlreadyExists, also for a hidden model."""
        if stored := await self._model(model.model_id):
            raise AlreadyExists("model", model.model_id, **stored.tombstone())
        return await self.save_model("model.registered", None, model)

    async def save_model(self, action: str, before: Model | None, after: Model) -> Model:
        """Puts `after` in the place of `before`, which was read in this transaction."""
        after = replace(after, update_time=self.now, etag=str(self._head.sequence + 1))
        key = {"project": self.project, "model_id": after.model_id}
        record, changes = await in_thread(_written, before, after, replace(after, latest_version=""))
        values = {"delete_time": after.delete_time, "record": record}
        await self._save(tables.models, key, values, is_new=before is None)
        await self._save_tags(key | {"precedence": ""}, before, after)
        await self.record(action, model_id=after.model_id, changes=changes, subject=after)
        return after

    async def add_version(self, version: ModelVersion, action: str = "version.created") -> ModelVersion:
        """Raises AlreadyExists, also for a hidden version and one that differs in build metadata alone."""
        if stored := await self._version(version.model_id, version.version):
            raise AlreadyExists("model version", stored.name, **stored.tombstone())
        return await self.save_version(action, None, version)

    async def save_version(
        self, action: str, before: ModelVersion | None, after: ModelVersion
    ) -> ModelVersion:
        """Puts `after` in the place of `before`, which was read in this transaction."""
        after = replace(after, update_time=self.now, etag=str(self._head.sequence + 1))
        key = {"project": self.project, "model_id": after.model_id, "precedence": precedence(after.version)}
        record, changes = await in_thread(_written, before, after, replace(after, aliases=()))
        values = {
            "version": str(after.version),
            "is_prerelease": after.version.prerelease is not None,
            "state": after.state.value,
            "create_time": after.create_time,
            "delete_time": after.delete_time,
            "record": record,
        }
        await self._save(tables.versions, key, values, is_new=before is None)
        if before is None:  # the files of a version never change
            await self._insert(
                tables.version_artifacts,
                [key | {"digest": digest} for digest in sorted({file.digest for file in after.artifacts})],
            )
        await self._save_tags(key, before, after)
        version = str(after.version)
        await self.record(action, model_id=after.model_id, version=version, changes=changes, subject=after)
        return after

    async def point(self, before: Alias | None, after: Alias) -> Alias:
        """Puts `after` in the place of `before`, which was read in this transaction; what was stays known."""
        action = "alias.set" if after.version else "alias.deleted"
        table = tables.alias_spans
        key = {"project": self.project, "model_id": after.model_id, "alias": after.alias}
        await self.connection.execute(
            update(table).where(_equal(table, key), table.c.until.is_(None)).values(until=self.now)
        )
        if after.version:
            span = {
                "since": self.now,
                "sequence": self._head.sequence + 1,
                "precedence": precedence(after.version),
                "version": str(after.version),
                "actor": after.actor,
                "is_protected": after.is_protected,
            }
            await self.connection.execute(insert(table).values(**key, **span))
        about = after.version or (before.version if before else None)
        await self.record(
            action,
            model_id=after.model_id,
            version=str(about or ""),
            changes=records.alias_changes(before, after),
            subject=after,
        )
        return after

    async def hold(self, digests: Collection[str]) -> None:
        """Keeps stored files from being collected until this transaction ends, and for a while after it."""
        await hold(self.connection, digests, self.now)

    async def record(
        self,
        action: str,
        *,
        model_id: str = "",
        version: str = "",
        changes: Sequence[FieldDifference] = (),
        subject: Subject | None = None,
    ) -> AuditEvent:
        """Writes a change into the history and tells the watches. subject: as it is after the change."""
        event = await in_thread(
            history.next_event,
            self._head,
            self.origin,
            time=self.now,
            action=action,
            model_id=model_id,
            version=version,
            changes=changes,
        )
        shown = {name: getattr(event, name) for name in ("project", "sequence", "time", "action", "model_id")}
        record = await in_thread(_dumped, subject) if subject else ""
        await self.connection.execute(insert(tables.audit_events).values(**vars(event)))
        await self.connection.execute(
            insert(tables.model_events).values(**shown, subject=kind_of(subject), record=record)
        )
        if subject:  # what is done to webhooks stands in the history alone
            await deliveries.enqueue(self.connection, event)
        self._head = Head(event.sequence, event.hash)
        await self.connection.execute(
            update(tables.audit_heads)
            .where(tables.audit_heads.c.project == self.project)
            .values(sequence=self._head.sequence, hash=self._head.hash, time=self.now)
        )
        return event

    async def _save(
        self, table: Table, key: Mapping[str, Any], values: Mapping[str, Any], *, is_new: bool
    ) -> None:
        statement = insert(table).values(**key) if is_new else update(table).where(_equal(table, key))
        await self.connection.execute(statement.values(**values))

    async def _save_tags(
        self, key: Mapping[str, Any], before: Model | ModelVersion | None, after: Model | ModelVersion
    ) -> None:
        if (before.tags if before else {}) == after.tags:
            return
        await self.connection.execute(delete(tables.tags).where(_equal(tables.tags, key)))
        rows = [{**key, "name": name, "value": value} for name, value in after.tags.items()]
        await self._insert(tables.tags, rows)

    async def _insert(self, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            await self.connection.execute(insert(table), rows)


async def hold(connection: AsyncConnection, digests: Collection[str], now: datetime) -> None:
    """Notes that stored files are in use now. What collects them meets this at their rows."""
    # In one order, so that no two writers wait for each other.
    rows = [{"digest": digest, "last_used": now} for digest in sorted(set(digests))]
    await upsert(connection, tables.blobs, rows, changing=["last_used"])


def _equal(table: Any, key: Mapping[str, Any]) -> ColumnElement[bool]:
    return and_(*(table.c[name] == value for name, value in key.items()))


def _written(
    before: Model | ModelVersion | None, after: Model | ModelVersion, stored: Model | ModelVersion
) -> tuple[str, list[FieldDifference]]:
    """The text of `stored`, and what changed. In a thread: with many files or samples it takes long."""
    return _dumped(stored), records.changes(before, after)


def _dumped(subject: Subject) -> str:
    text = records.dump(subject)
    if len(text) > MAX_RECORD_CHARACTERS:
        raise InvalidArgument(
            "", f"the whole record is larger than {MAX_RECORD_CHARACTERS} characters of JSON; shorten it"
        )
    return text
