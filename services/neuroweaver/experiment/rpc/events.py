"""The RPCs by which events come in, and by which the statistics are made anew from them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.experiment.analysis.report import report
from neuroweaver.experiment.conclusion.registry import Releases
from neuroweaver.experiment.control.evaluators import Evaluators
from neuroweaver.experiment.intake import recompute
from neuroweaver.experiment.intake.committer import Committer
from neuroweaver.experiment.intake.events import batches_of
from neuroweaver.experiment.intake.ingestion import Outcome
from neuroweaver.experiment.rpc.handler import Handler, Results
from neuroweaver.experiment.storage.store import Store
from neuroweaver.experiment.storage.writer import Writer
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.database import as_error
from neuroweaver.mesh.wire.errors import Error
from neuroweaver.v1 import experiment_pb2 as pb

# Batches of a stream that are on their way at once: enough to fill a transaction, little to send again.
_UNDER_WAY: Final = 16


class EventMethods(Handler):
    def __init__(self, store: Store, evaluators: Evaluators, releases: Releases, results: Results) -> None:
        super().__init__(store, evaluators, releases, results)
        self.committer = Committer(store.database, store.projections, store.clock)

    async def RecordEvents(
        self, request_iterator: AsyncIterator[pb.RecordEventsRequest], context: Any
    ) -> pb.RecordEventsResponse:
        stream = _Stream(self.committer, caller_of(context).project)
        try:
            async for request in request_iterator:
                await stream.take(request)
            await stream.settle(0)
        except (Error, SQLAlchemyError) as error:
            told = error if isinstance(error, Error) else as_error(error)
            await stream.wait()
            if told is None:
                raise
            told.metadata["committed_batches"] = str(stream.committed)
            raise told from error
        return stream.response()

    async def RecomputeResults(
        self, request: pb.RecomputeResultsRequest, context: Any
    ) -> pb.RecomputeResultsResponse:
        async def operation(experiments: Writer) -> pb.RecomputeResultsResponse:
            experiment = await experiments.experiment(request.test_id)
            found = await recompute.recompute(
                experiments.connection,
                experiments.project,
                request.test_id,
                replace_stored=request.replace,
            )
            return pb.RecomputeResultsResponse(
                events=found.events,
                is_equal=not found.differences,
                max_relative_difference=found.max_relative_difference,
                differences=[
                    pb.StatisticDifference(
                        metric_id=each.metric_id,
                        variant_id=each.variant_id,
                        phase=each.phase,
                        statistic=each.statistic,
                        stored=each.stored,
                        recomputed=each.recomputed,
                    )
                    for each in found.differences
                ],
                is_replaced=request.replace and bool(found.differences),
                results=report(experiment, found.snapshot, now=experiments.now).results,
            )

        response_type, project = pb.RecomputeResultsResponse, caller_of(context).project
        async with self._store.projections.hold(project, [request.test_id]):
            answer = await self._mutate("RecomputeResults", request, context, response_type, operation)
            if answer.is_replaced:
                self._store.projections.forget(project, request.test_id)
            return answer


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
        """Waits until at most so many are under way. Raises what went wrong with one."""
        while len(self._under_way) > left:
            self._outcome += await asyncio.shield(self._under_way[0])
            self._under_way.popleft()
            self.committed += 1

    async def wait(self) -> None:
        """Until nothing is under way; counts what was committed before the first that was not."""
        outcomes = await asyncio.gather(*self._under_way, return_exceptions=True)
        self._under_way.clear()
        failed = next(
            (i for i, each in enumerate(outcomes) if isinstance(each, BaseException)), len(outcomes)
        )
        self.committed += failed

    def response(self) -> pb.RecordEventsResponse:
        outcome = self._outcome
        return pb.RecordEventsResponse(
            batches=self.committed,
            received=outcome.received,
            accepted=outcome.accepted,
            duplicates=outcome.duplicates,
            late=outcome.late,
            rejected=[
                pb.RejectedEvents(
                    test_id=test_id,
                    reason=reason,
                    count=each.count,
                    names=each.names,
                    event_ids=each.event_ids,
                )
                for (test_id, reason), each in sorted((outcome.rejected or {}).items())
            ],
        )
