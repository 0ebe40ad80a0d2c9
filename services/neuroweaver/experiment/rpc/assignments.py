"""Assignments: the variant of a unit, and the configurations from which evaluators elsewhere assign."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from neuroweaver.experiment.control.evaluators import Evaluators
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.handlers.watch import Look, follow
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
        project, is_complete = caller_of(context).project, request.since_sequence > 0

        async def look(after: int) -> Look[pb.AssignmentEvent]:
            nonlocal is_complete
            async with self._store.read(project) as experiments:
                newest = await experiments.config_sequence()
                events = await experiments.configs(after, list(request.test_ids))
            if not is_complete:
                complete = pb.SnapshotComplete(configs=len(events))
                events.append(pb.AssignmentEvent(sequence=newest, snapshot_complete=complete))
                is_complete = True
            # Others' changes move it along, so that a resumed watch does not look at them again.
            return Look(events, max(after, newest), newest)

        signal = self._store.configs_signal(project)
        events = follow(look, since=request.since_sequence, heartbeat=_heartbeat, signal=signal)
        async with aclosing(events):
            async for event in events:
                yield event


def _heartbeat(sequence: int) -> pb.AssignmentEvent:
    return pb.AssignmentEvent(sequence=sequence, heartbeat=common_pb2.Heartbeat(sequence=sequence))
