"""Events: taken in, and the statistics recomputed from them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from itertools import takewhile
from operator import itemgetter
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.experiment.analysis.report import report
from neuroweaver.experiment.intake import recompute
from neuroweaver.experiment.intake.committer import Committer
from neuroweaver.experiment.intake.events import batches_of
from neuroweaver.experiment.intake.ingestion import Outcome
from neuroweaver.experiment.results import history
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.refusals import as_error
from neuroweaver.mesh.handlers.mutations import Mutations
from neuroweaver.mesh.wire.errors import Error
from neuroweaver.mesh.wire.messages import message_of
from neuroweaver.v1 import experiment_pb2 as pb

# Batches of a stream that are on their way at once: enough to fill a transaction, little to send again.
_UNDER_WAY: Final = 16


async def recompute_results(
    experiments: Writer, request: pb.RecomputeResultsRequest
) -> pb.RecomputeResultsResponse:
    """After a replacement the experiment's projection is to be forgotten."""
    experiment = await experiments.experiment(request.test_id)
    recomputed = await recompute.recompute(
        experiments.connection,
        experiments.project,
        request.test_id,
        experiments.now,
        replace_stored=request.replace,
    )
    split = await history.split(experiments, request.test_id)
    return message_of(
        pb.RecomputeResultsResponse,
        recomputed,
        is_equal=not recomputed.differences,
        results=report(experiment, recomputed.snapshot, now=experiments.now, previous=split).results,
    )


class Events:
    def __init__(self, mutations: Mutations[Writer], committer: Committer) -> None:
        self._mutations = mutations
        self._committer = committer

    async def RecordEvents(
        self, request_iterator: AsyncIterator[pb.RecordEventsRequest], context: Any
    ) -> pb.RecordEventsResponse:
        stream = _Stream(self._committer, caller_of(context).project)
        try:
            async for request in request_iterator:
                await stream.take(request)
            await stream.settle(0)
        except (Error, SQLAlchemyError) as cause:
            error = cause if isinstance(cause, Error) else as_error(cause)
            await stream.wait()
            if error is None:
                raise
            error.metadata["committed_batches"] = str(stream.committed)
            raise error from cause
        return stream.response()

    async def RecomputeResults(
        self, request: pb.RecomputeResultsRequest, context: Any
    ) -> pb.RecomputeResultsResponse:
        project, projections = caller_of(context).project, self._committer.projections
        async with projections.hold(project, [request.test_id]):
            response = await self._mutations.run(
                request, context, lambda experiments: recompute_results(experiments, request)
            )
            if response.is_replaced:
                projections.forget(project, request.test_id)
            return response


class _Stream:
    """One stream's batches, committed in the order they came."""

    def __init__(self, committer: Committer, project: str) -> None:
        self._committer = committer
        self._project = project
        self._under_way: deque[asyncio.Future[Outcome]] = deque()
        self._outcome = Outcome()
        self.committed = 0

    async def take(self, request: pb.RecordEventsRequest) -> None:
        self._under_way.append(self._committer.put(self._project, batches_of(request)))
        await self.settle(_UNDER_WAY - 1)

    async def settle(self, left: int) -> None:
        """Waits until at most `left` are under way. Raises what went wrong with one."""
        while len(self._under_way) > left:
            self._outcome += await asyncio.shield(self._under_way[0])
            self._under_way.popleft()
            self.committed += 1

    async def wait(self) -> None:
        """Until nothing is under way; counts what was committed before the first that was not."""
        outcomes = await asyncio.gather(*self._under_way, return_exceptions=True)
        self._under_way.clear()
        self.committed += len(list(takewhile(lambda outcome: isinstance(outcome, Outcome), outcomes)))

    def response(self) -> pb.RecordEventsResponse:
        rejected = [
            message_of(pb.RejectedEvents, rejection, test_id=test_id)
            for (test_id, _), rejection in sorted(self._outcome.rejected.items(), key=itemgetter(0))
        ]
        return message_of(pb.RecordEventsResponse, self._outcome, batches=self.committed, rejected=rejected)
