"""The RPCs by which units get their variants, and evaluators elsewhere what they need to know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from neuroweaver.experiment.rpc.handler import Handler
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.wire.errors import NotFound, OutOfRange
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import experiment_pb2 as pb

HEARTBEAT_S: Final = 15.0
POLL_S: Final = 1.0


class AssignmentMethods(Handler):
    async def AssignVariant(self, request: pb.AssignVariantRequest, context: Any) -> pb.VariantAssignment:
        assigner = await self._evaluators.of(caller_of(context).project, request.test_id)
        return assigner.assign(request.unit_id, request.attributes)

    async def BatchAssignVariants(
        self, request: pb.BatchAssignVariantsRequest, context: Any
    ) -> pb.BatchAssignVariantsResponse:
        project = caller_of(context).project
        return pb.BatchAssignVariantsResponse(
            assignments=[await self._assigned(project, each) for each in request.requests]
        )

    async def _assigned(self, project: str, request: pb.AssignVariantRequest) -> pb.VariantAssignment:
        try:
            assigner = await self._evaluators.of(project, request.test_id)
        except NotFound:
            return pb.VariantAssignment(
                test_id=request.test_id,
                unit_id=request.unit_id,
                reason=pb.ASSIGNMENT_REASON_NOT_FOUND,
            )
        return assigner.assign(request.unit_id, request.attributes)

    async def WatchAssignments(
        self, request: pb.WatchAssignmentsRequest, context: Any
    ) -> AsyncIterator[pb.AssignmentEvent]:
        project, wanted = caller_of(context).project, list(request.test_ids)
        signal = self._store.configs_signal(project)
        clock = asyncio.get_running_loop().time
        last, is_begun, sent_at = request.since_sequence, request.since_sequence > 0, clock()
        while True:
            seen = signal.count
            async with self._store.read(project) as experiments:
                newest = await experiments.config_sequence()
                changes = await experiments.configs(last, test_ids=wanted)
            if last > newest:
                raise OutOfRange(f"nothing with sequence {last} has happened yet; begin with 0")
            for change in changes:
                event = pb.AssignmentEvent(sequence=change.sequence, config=change.config)
                event.time.FromDatetime(change.time)
                yield event
                sent_at = clock()
            # Others' changes move it along, so that a resumed watch does not look at them again.
            last = newest
            if not is_begun:
                is_begun = True
                yield pb.AssignmentEvent(
                    sequence=last, snapshot_complete=pb.SnapshotComplete(configs=len(changes))
                )
                sent_at = clock()
            elif clock() - sent_at >= HEARTBEAT_S:
                yield pb.AssignmentEvent(sequence=last, heartbeat=common_pb2.Heartbeat(sequence=last))
                sent_at = clock()
            await signal.wait(seen, min(POLL_S, max(0.0, HEARTBEAT_S - (clock() - sent_at))))
