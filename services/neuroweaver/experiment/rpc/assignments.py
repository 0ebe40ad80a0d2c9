"""Assignments: the variant of a unit, and the configurations from which evaluators elsewhere assign."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from neuroweaver.experiment.control.evaluators import Assigner, Evaluators
from neuroweaver.experiment.storage.store import Store, configs_topic
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.handlers.topic import Look
from neuroweaver.mesh.handlers.watch import follow
from neuroweaver.mesh.wire.errors import NotFound
from neuroweaver.mesh.wire.threads import check_wanted, in_thread
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
        project, assigners = caller_of(context).project, {}
        for test_id in {single.test_id for single in request.requests}:
            with suppress(NotFound):
                assigners[test_id] = await self._evaluators.of(project, test_id)
        # A thousand units with all their attributes take long.
        return await in_thread(_assigned, request, assigners)

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


def _assigned(
    request: pb.BatchAssignVariantsRequest, assigners: Mapping[str, Assigner]
) -> pb.BatchAssignVariantsResponse:
    response = pb.BatchAssignVariantsResponse()
    for single in request.requests:
        check_wanted()
        if assigner := assigners.get(single.test_id):
            response.assignments.append(assigner.assign(single.unit_id, single.attributes))
        else:
            response.assignments.add(
                test_id=single.test_id, unit_id=single.unit_id, reason=pb.ASSIGNMENT_REASON_NOT_FOUND
            )
    return response


def _heartbeat(sequence: int) -> pb.AssignmentEvent:
    return pb.AssignmentEvent(sequence=sequence, heartbeat=common_pb2.Heartbeat(sequence=sequence))
