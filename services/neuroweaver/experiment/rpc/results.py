"""Results: as they are, as they were, as they move; and the plan of an experiment to come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC
from typing import Any

from neuroweaver.experiment.analysis.planning import planned
from neuroweaver.experiment.domain.model import CONCLUDED
from neuroweaver.experiment.results.cache import ResultsCache
from neuroweaver.experiment.results.live import LiveResults, conflated
from neuroweaver.experiment.results.replay import replayed
from neuroweaver.experiment.storage.store import Store, results_topic
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.handlers.topic import Look
from neuroweaver.mesh.handlers.watch import PAGE_SIZE, follow
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import experiment_pb2 as pb


class Results:
    def __init__(self, store: Store, cache: ResultsCache) -> None:
        self._store = store
        self._cache = cache
        self._live = LiveResults(store, cache)

    async def AnalyzeExperiment(
        self, request: pb.AnalyzeExperimentRequest, context: Any
    ) -> pb.ExperimentResults:
        project = caller_of(context).project
        if request.HasField("as_of"):
            return await replayed(self._store, project, request, request.as_of.ToDatetime(tzinfo=UTC))
        if request.phase:
            return await self._cache.phase(project, request.test_id, request.phase)
        return await self._cache.current(project, request.test_id)

    async def ListResults(self, request: pb.ListResultsRequest, context: Any) -> pb.ListResultsResponse:
        project = caller_of(context).project
        page = Page.asked(request, project)
        async with self._store.read(project) as experiments:
            await experiments.experiment(request.test_id)
            results, token = await experiments.results(request.test_id, page)
        return pb.ListResultsResponse(results=results, next_page_token=token)

    async def PlanExperiment(
        self, request: pb.PlanExperimentRequest, _context: Any
    ) -> pb.PlanExperimentResponse:
        return await asyncio.to_thread(planned, request)

    async def WatchResults(
        self, request: pb.WatchResultsRequest, context: Any
    ) -> AsyncIterator[pb.ResultsEvent]:
        project, test_id, topics = caller_of(context).project, request.test_id, self._store.topics

        async def look(after: int) -> Look[pb.ResultsEvent]:
            async with self._store.read(project) as experiments:
                experiment = await experiments.experiment(test_id)
                oldest = await experiments.first_result_event(test_id)
                events = await experiments.result_events(test_id, after=after, limit=PAGE_SIZE)
            newest = experiment.last_sequence
            last = events[-1].sequence if len(events) == PAGE_SIZE else newest
            return Look(events, last, newest, oldest or 1, experiment.state == CONCLUDED)

        def heartbeat(last: int) -> pb.ResultsEvent:
            beat = common_pb2.Heartbeat(sequence=last)
            return pb.ResultsEvent(sequence=last, test_id=test_id, heartbeat=beat)

        await self._store.experiment(project, test_id)
        events = follow(
            topics.topic(results_topic(project, test_id), look),
            since=request.since_sequence,
            heartbeat=heartbeat,
            look=look,
            view=lambda look: replace(look, events=conflated(look.events)),
            replays_kept=True,
        )
        async with self._live.watched(project, test_id), aclosing(events):
            async for event in events:
                yield event
