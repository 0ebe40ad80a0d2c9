"""The RPCs that say where an experiment stands, and what one would need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from neuroweaver.experiment.analysis.planning import planned
from neuroweaver.experiment.conclusion.registry import Releases
from neuroweaver.experiment.control.evaluators import Evaluators
from neuroweaver.experiment.domain.model import CONCLUDED
from neuroweaver.experiment.domain.specification import moment
from neuroweaver.experiment.intake import snapshots
from neuroweaver.experiment.results.broadcast import PAGE, Audience, Audiences
from neuroweaver.experiment.results.replay import replayed
from neuroweaver.experiment.results.results import Desk
from neuroweaver.experiment.rpc.handler import Handler, Results
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.wire.errors import OutOfRange
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import experiment_pb2 as pb

HEARTBEAT_S: Final = 15.0


class ResultsMethods(Handler):
    def __init__(self, store: Store, evaluators: Evaluators, releases: Releases, results: Results) -> None:
        """results: who gives the verdict: a `Desk`, unless a test plays it."""
        super().__init__(store, evaluators, releases, results)
        self._desk = results if isinstance(results, Desk) else Desk(store, snapshots.load)
        self._audiences = Audiences(store, self._desk)

    async def AnalyzeExperiment(
        self, request: pb.AnalyzeExperimentRequest, context: Any
    ) -> pb.ExperimentResults:
        project = caller_of(context).project
        if request.HasField("as_of"):
            return await replayed(self._store, project, request, moment("as_of", request.as_of))
        if request.phase:
            return await self._desk.phase(project, request.test_id, request.phase)
        return await self._desk.current(project, request.test_id)

    async def ListResults(self, request: pb.ListResultsRequest, context: Any) -> pb.ListResultsResponse:
        project = caller_of(context).project
        page = Page.of(request.page_size, request.page_token, query=("results", project, request.test_id))
        async with self._store.read(project) as experiments:
            await experiments.experiment(request.test_id)
            found, token = await experiments.results(request.test_id, page)
        return pb.ListResultsResponse(results=found, next_page_token=token)

    async def PlanExperiment(
        self, request: pb.PlanExperimentRequest, _context: Any
    ) -> pb.PlanExperimentResponse:
        return await asyncio.to_thread(planned, request)

    async def WatchResults(
        self, request: pb.WatchResultsRequest, context: Any
    ) -> AsyncIterator[pb.ResultsEvent]:
        project, test_id, last = caller_of(context).project, request.test_id, request.since_sequence
        newest, has_ended = await self._check(project, test_id, last)
        if has_ended and last == newest:
            return
        clock = asyncio.get_running_loop().time
        sent_at = clock()
        async with self._audiences.join(project, test_id, newest) as audience:
            while True:
                seen = audience.signal.count
                events = await self._after(audience, project, test_id, last)
                for event in events:
                    yield event
                    last, sent_at = event.sequence, clock()
                    if event.state_changed.to_state == CONCLUDED:
                        return
                if events:
                    continue
                if clock() - sent_at >= HEARTBEAT_S:
                    yield pb.ResultsEvent(
                        sequence=last, test_id=test_id, heartbeat=common_pb2.Heartbeat(sequence=last)
                    )
                    sent_at = clock()
                await audience.signal.wait(seen, max(0.0, HEARTBEAT_S - (clock() - sent_at)))

    async def _check(self, project: str, test_id: str, since: int) -> tuple[int, bool]:
        """The last sequence so far, and whether no more will come. Raises NotFound, OutOfRange."""
        async with self._store.read(project) as experiments:
            experiment = await experiments.experiment(test_id)
            oldest = await experiments.first_result_event(test_id)
        if since > experiment.last_sequence:
            raise OutOfRange(f"nothing with sequence {since} has happened yet; resume from the last one seen")
        if since and oldest is not None and since + 1 < oldest:
            raise OutOfRange(
                f"the events between {since} and {oldest} are no longer kept; begin with 0",
                metadata={"oldest_sequence": str(oldest)},
            )
        return experiment.last_sequence, experiment.state == CONCLUDED

    async def _after(
        self, audience: Audience, project: str, test_id: str, last: int
    ) -> Sequence[pb.ResultsEvent]:
        """From what all watchers share, or from the store for one who is behind."""
        held = audience.after(last)
        if held is not None:
            return held
        async with self._store.read(project) as experiments:
            return await experiments.result_events(test_id, last, PAGE)
