"""What a transaction changes of a project's experiments: evaluators and watches hear of it in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.domain import messages
from neuroweaver.experiment.domain.model import Experiment
from neuroweaver.experiment.storage import tables
from neuroweaver.experiment.storage.reader import LABEL, Reader
from neuroweaver.mesh.wire.errors import AlreadyExists
from neuroweaver.mesh.wire.ids import new_id
from neuroweaver.v1 import experiment_pb2 as pb


class Writer(Reader):
    """A write transaction.

    sequence: of the last change of a configuration. touched: the experiments whose watches to wake.
    """

    def __init__(
        self, connection: AsyncConnection, project: str, actor: str, sequence: int, now: datetime
    ) -> None:
        super().__init__(connection, project)
        self.actor = actor
        self.sequence = sequence
        self.now = now
        self.touched: set[str] = set()

    async def salt_of_layer(self, layer_id: str) -> str:
        """Made with the first call for this layer."""
        known = await self.layer_salt(layer_id)
        if known is not None:
            return known
        salt = new_id()
        await self.connection.execute(
            insert(tables.layers).values(project=self.project, layer_id=layer_id, salt=salt)
        )
        return salt

    async def add(self, experiment: Experiment) -> Experiment:
        """Raises AlreadyExists."""
        if await self.has(experiment.test_id):
            raise AlreadyExists("experiment", experiment.test_id)
        await self._add_facets(experiment)
        return await self._save(None, experiment)

    async def save(
        self, before: Experiment, after: Experiment, events: Sequence[pb.ResultsEvent] = ()
    ) -> Experiment:
        """Puts `after` in the place of `before`, read in this transaction. events: what watches are told."""
        return await self._save(before, after, events)

    async def tell(self, experiment: Experiment, kind: str, event: pb.ResultsEvent) -> Experiment:
        """Has watches told something that changes nothing of the experiment itself."""
        told = replace(experiment, last_sequence=experiment.last_sequence + 1)
        await self._insert_event(told, kind, event)
        await self._update(told)
        self.touched.add(experiment.test_id)
        return told

    async def _save(
        self, before: Experiment | None, after: Experiment, events: Sequence[pb.ResultsEvent] = ()
    ) -> Experiment:
        self.sequence += 1
        after = replace(after, update_time=self.now, etag=str(self.sequence))
        if before is None:
            await self.connection.execute(insert(tables.experiments).values(**self._row(after)))
        for event in events:
            after = replace(after, last_sequence=after.last_sequence + 1)
            await self._insert_event(after, event.WhichOneof("event") or "", event)
        await self._update(after)
        await self._put_config(after)
        self.touched.add(after.test_id)
        return after

    async def _insert_event(self, experiment: Experiment, kind: str, event: pb.ResultsEvent) -> None:
        event.sequence = experiment.last_sequence
        event.test_id = experiment.test_id
        event.time.FromDatetime(self.now)
        await self.connection.execute(
            insert(tables.result_events).values(
                project=self.project,
                test_id=experiment.test_id,
                sequence=event.sequence,
                time=self.now,
                kind=kind,
                event=event.SerializeToString(deterministic=True),
            )
        )

    async def _update(self, experiment: Experiment) -> None:
        table = tables.experiments
        statement = update(table).where(
            table.c.project == self.project, table.c.test_id == experiment.test_id
        )
        await self.connection.execute(statement.values(**self._row(experiment)))

    def _row(self, experiment: Experiment) -> dict[str, Any]:
        record, hidden = messages.dump(experiment)
        return {
            "project": self.project,
            "test_id": experiment.test_id,
            "state": experiment.state,
            "create_time": experiment.create_time,
            "layer_id": experiment.spec.layer.layer_id if experiment.layer_ranges else "",
            "record": record,
            "hidden": hidden,
        }

    async def _put_config(self, experiment: Experiment) -> None:
        dialect = sqlite if self.connection.dialect.name == "sqlite" else postgresql
        config = messages.config_of(experiment).SerializeToString(deterministic=True)
        statement = dialect.insert(tables.configs).values(
            project=self.project,
            test_id=experiment.test_id,
            sequence=self.sequence,
            time=self.now,
            config=config,
        )
        new = {name: statement.excluded[name] for name in ("sequence", "time", "config")}
        await self.connection.execute(
            statement.on_conflict_do_update(index_elements=["project", "test_id"], set_=new)
        )

    async def _add_facets(self, experiment: Experiment) -> None:
        spec = experiment.spec
        found = {(f"{LABEL}{name}", value) for name, value in spec.labels.items()}
        found |= {("model_id", each.target.model_id) for each in spec.variants if each.HasField("target")}
        if spec.HasField("layer"):
            found.add(("layer_id", spec.layer.layer_id))
        if found:
            key = {"project": self.project, "test_id": experiment.test_id}
            rows = [key | {"name": name, "value": value} for name, value in sorted(found)]
            await self.connection.execute(delete(tables.facets).where(_is(tables.facets, key)))
            await self.connection.execute(insert(tables.facets), rows)


def _is(table: Any, key: dict[str, str]) -> Any:
    condition = table.c.project == key["project"]
    return condition & (table.c.test_id == key["test_id"])
