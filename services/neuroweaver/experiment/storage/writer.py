"""What a transaction changes of a project's experiments: evaluators and watches hear of it in one."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.experiment.domain import messages
from neuroweaver.experiment.domain.model import Experiment
from neuroweaver.experiment.storage import tables
from neuroweaver.experiment.storage.reader import LABEL, Reader
from neuroweaver.mesh.database.upsert import insert_new, upsert
from neuroweaver.mesh.wire.errors import AlreadyExists
from neuroweaver.mesh.wire.ids import new_id
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.v1 import experiment_pb2 as pb


class Writer(Reader):
    """A write transaction.

    sequence: of the last change of a configuration. touched: the experiments whose watches to wake.
    """

    def __init__(
        self, connection: AsyncConnection, origin: ChangeOrigin, sequence: int, now: datetime
    ) -> None:
        super().__init__(connection, origin.project)
        self.origin = origin
        self.sequence = sequence
        self.now = now
        self.touched: set[str] = set()

    async def salt_of_layer(self, layer_id: str) -> str:
        """Made with the first call for this layer."""
        table = tables.layers
        new = insert_new(self.connection, table)
        await self.connection.execute(new.values(project=self.project, layer_id=layer_id, salt=new_id()))
        statement = select(table.c.salt).where(table.c.project == self.project, table.c.layer_id == layer_id)
        salt: str = (await self.connection.execute(statement)).scalar_one()
        return salt

    async def add(self, experiment: Experiment) -> Experiment:
        """Raises AlreadyExists."""
        if await self.has(experiment.test_id):
            raise AlreadyExists("experiment", experiment.test_id)
        await self._add_facets(experiment)
        return await self._put(experiment)

    async def save(self, before: Experiment, after: Experiment) -> Experiment:
        """Puts `after` in the place of `before`, read in this transaction, and tells watches what changed.

        What changes nothing is not written.
        """
        if after == before:
            return before
        for event in messages.events_of(before, after, self.origin.actor):
            after = await self._add_event(after, event)
        return await self._put(after)

    async def publish(self, experiment: Experiment, event: pb.ResultsEvent) -> Experiment:
        """Tells watches what changes nothing of the experiment itself."""
        experiment = await self._add_event(experiment, event)
        await self._put_record(experiment)
        return experiment

    async def _put(self, experiment: Experiment) -> Experiment:
        self.sequence += 1
        experiment = replace(experiment, update_time=self.now, etag=str(self.sequence))
        await self._put_record(experiment)
        config = {
            "project": self.project,
            "test_id": experiment.test_id,
            "sequence": self.sequence,
            "time": self.now,
            "config": messages.config_of(experiment).SerializeToString(deterministic=True),
        }
        await upsert(self.connection, tables.configs, config)
        return experiment

    async def _add_event(self, experiment: Experiment, event: pb.ResultsEvent) -> Experiment:
        event.sequence = experiment.last_sequence + 1
        event.test_id = experiment.test_id
        event.time.FromDatetime(self.now)
        await self.connection.execute(
            insert(tables.result_events).values(
                project=self.project,
                test_id=experiment.test_id,
                sequence=event.sequence,
                time=self.now,
                kind=event.WhichOneof("event"),
                event=event.SerializeToString(deterministic=True),
            )
        )
        return replace(experiment, last_sequence=event.sequence)

    async def _put_record(self, experiment: Experiment) -> None:
        await upsert(self.connection, tables.experiments, self._row(experiment))
        self.touched.add(experiment.test_id)

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

    async def _add_facets(self, experiment: Experiment) -> None:
        spec = experiment.spec
        facets = {(f"{LABEL}{name}", value) for name, value in spec.labels.items()}
        facets |= {("model_id", each.target.model_id) for each in spec.variants if each.HasField("target")}
        if spec.HasField("layer"):
            facets.add(("layer_id", spec.layer.layer_id))
        if facets:
            key = {"project": self.project, "test_id": experiment.test_id}
            rows = [key | {"name": name, "value": value} for name, value in sorted(facets)]
            await self.connection.execute(insert(tables.facets), rows)
