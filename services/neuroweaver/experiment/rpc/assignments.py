"""Assignments: the variant of a unit, and the configurations from which evaluators elsewhere assign."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from neuroweaver.experiment.control.evaluators import Evaluators
from neuroweaver.experiment.storage.store import Store, configs_topic
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.handlers.topic import Look
from neuroweaver.mesh.handlers.watch import follow
from neuroweaver.mesh.wire.errors import NotFound
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import experiment_pb2 as pb


class Assignments:
    def __init__(self, store: Store, evaluators: Evaluators) -> None:
        self._store = store
        self._evaluators = evaluators

    async def AssignVariant(self, request: pb.AssignVariantRequest, context: Any) -> pb.VariantAssignment:
        assigner = await self._evaluators.of(caller_of(context).project, request.test_id)
        return assigner.assign(request.unit_id, request.attributes)

    async def BatchAssignVariants(
        self, request: pb.BatchAssignVariantsRequest, context: Any
    ) -> pb.BatchAssignVariantsResponse:
        return pb.BatchAssignVariantsResponse(
            assignments=[await self._assigned(single, context) for single in request.requests]
        )

    async def _assigned(self, request: pb.AssignVariantRequest, context: Any) -> pb.VariantAssignment:
        try:
            return await self.AssignVariant(request, context)
        except NotFound:
            return pb.VariantAssignment(
                test_id=request.test_id, unit_id=request.unit_id, reason=pb.ASSIGNMENT_REASON_NOT_FOUND
            )

    async def WatchAssignments(
        self, request: pb.WatchAssignmentsRequest, context: Any
    ) -> AsyncIterator[pb.AssignmentEvent]:
        project, topics, test_ids = caller_of(context).project, self._store.topics, set(request.test_ids)

        async def read(after: int, test_ids: Collection[str] = ()) -> Look[pb.AssignmentEvent]:
            async with self._store.read(project) as experiments:
                newest = await experiments.config_sequence()
                events = await experiments.configs(after, list(test_ids))
            # Others' changes move it along, so that a resumed watch does not look at them again.
            return Look(events, newest, newest)

        def view(look: Look[pb.AssignmentEvent]) -> Look[pb.AssignmentEvent]:
            if not test_ids:
                return look
            return replace(look, events=[event for event in look.events if event.config.test_id in test_ids])

        since = request.since_sequence
        if not since:
            snapshot = await read(0, test_ids)
            for event in snapshot.events:
                yield event
            since, complete = snapshot.last, pb.SnapshotComplete(configs=len(snapshot.events))
            yield pb.AssignmentEvent(sequence=since, snapshot_complete=complete)
        events = follow(
            topics.topic(configs_topic(project), read),
            since=since,
            heartbeat=_heartbeat,
            look=lambda after: read(after, test_ids),
            view=view,
        )
        async with aclosing(events):
            async for event in events:
                yield event


def _heartbeat(sequence: int) -> pb.AssignmentEvent:
    return pb.AssignmentEvent(sequence=sequence, heartbeat=common_pb2.Heartbeat(sequence=sequence))
