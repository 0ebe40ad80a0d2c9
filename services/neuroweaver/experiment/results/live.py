"""Results for watches: computed and stored as they move, once for all who watch an experiment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from neuroweaver.experiment.domain.model import CONCLUDED
from neuroweaver.experiment.results.cache import MOST_AGE_S, PERIOD_S, ResultsCache
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.handlers.loop import Outage
from neuroweaver.v1 import experiment_pb2 as pb


class LiveResults:
    def __init__(self, store: Store, cache: ResultsCache) -> None:
        self._store = store
        self._cache = cache
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._watchers: dict[tuple[str, str], int] = {}

    @asynccontextmanager
    async def watched(self, project: str, test_id: str) -> AsyncIterator[None]:
        """Within it, the experiment's results are stored as they move."""
        key = project, test_id
        if key not in self._running:
            self._running[key] = asyncio.create_task(self._compute(project, test_id))
        self._watchers[key] = self._watchers.get(key, 0) + 1
        try:
            yield
        finally:
            self._watchers[key] -= 1
            if not self._watchers[key]:
                del self._watchers[key]
                task = self._running.pop(key)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.gather(task, return_exceptions=True)

    async def _compute(self, project: str, test_id: str) -> None:
        """Until nothing more can come."""
        moved = self._store.inputs_signal(project, test_id)
        outage = Outage("live results", project=project, test_id=test_id)
        least_age = timedelta(seconds=0.9 * PERIOD_S)
        while True:
            seen, wait_s = moved.count, PERIOD_S
            with outage.survived():
                report = await self._cache.keep(project, test_id, least_age)
                if report.results.state == CONCLUDED:
                    return
                wait_s = MOST_AGE_S
            await asyncio.sleep(PERIOD_S)
            await moved.wait(seen, wait_s)


def conflated(events: Sequence[pb.ResultsEvent]) -> Sequence[pb.ResultsEvent]:
    """Without results that later ones among them overtook; everything else stays."""
    newest = max((event.sequence for event in events if event.HasField("results")), default=0)
    return [event for event in events if not event.HasField("results") or event.sequence == newest]
