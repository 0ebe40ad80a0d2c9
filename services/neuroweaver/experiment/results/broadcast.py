"""The watchers of an experiment's results in this process: one computation and one reader serve them all."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from neuroweaver.experiment.domain.model import CONCLUDED, Experiment
from neuroweaver.experiment.results.cache import PERIOD_S, ResultsCache
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.handlers.loop import Outage, repeat
from neuroweaver.mesh.handlers.watch import PAGE_SIZE, Look, Signal
from neuroweaver.v1 import experiment_pb2 as pb

_HELD: Final = 64


class ResultsBroadcast:
    """The events of one experiment for all of its watchers. signal: says that there are new ones."""

    def __init__(self, store: Store, cache: ResultsCache, experiment: Experiment) -> None:
        self._store = store
        self._cache = cache
        self._key = experiment.project, experiment.test_id
        # Events after `first`, up to `last`, are at hand.
        self._first = self._last = experiment.last_sequence
        self._is_over = experiment.state == CONCLUDED
        self._events: deque[pb.ResultsEvent] = deque()
        self.signal = Signal()
        self.watchers = 0

    def look(self, after: int) -> Look[pb.ResultsEvent] | None:
        """The events after a sequence, without results that later ones overtook; None if not all are held."""
        if not self._first <= after <= self._last:
            return None
        events = conflated([event for event in self._events if event.sequence > after])
        return Look(events, self._last, self._last, is_over=self._is_over)

    async def read(self) -> None:
        """Fetches events as they come, until cancelled."""
        changed = self._store.results_signal(*self._key)
        await repeat("results", self._read_page, PERIOD_S, wake=changed, outage=self._outage())

    async def _read_page(self) -> float | None:
        project, test_id = self._key
        async with self._store.read(project) as experiments:
            events = await experiments.result_events(test_id, after=self._last, limit=PAGE_SIZE)
        self._hold(events)
        return 0.0 if len(events) == PAGE_SIZE else None

    async def compute(self) -> None:
        """Stores results as they move, until nothing more can come."""
        outage = self._outage()
        while True:
            with outage.survived():
                least_age = timedelta(seconds=0.9 * PERIOD_S)
                report = await self._cache.keep(*self._key, least_age)
                if report.results.state == CONCLUDED:
                    return
            await asyncio.sleep(outage.backoff_s or PERIOD_S)

    def _outage(self) -> Outage:
        project, test_id = self._key
        return Outage("results", project=project, test_id=test_id)

    def _hold(self, events: Sequence[pb.ResultsEvent]) -> None:
        if not events:
            return
        self._events.extend(events)
        self._last = events[-1].sequence
        self._is_over |= any(event.state_changed.to_state == CONCLUDED for event in events)
        while len(self._events) > _HELD:
            self._first = self._events.popleft().sequence
        self.signal.notify()


class Broadcasts:
    def __init__(self, store: Store, cache: ResultsCache) -> None:
        self._store = store
        self._cache = cache
        self._running: dict[tuple[str, str], tuple[ResultsBroadcast, list[asyncio.Task[None]]]] = {}

    @asynccontextmanager
    async def join(self, experiment: Experiment) -> AsyncIterator[ResultsBroadcast]:
        """The experiment's broadcast, which ends with its last watcher."""
        key = experiment.project, experiment.test_id
        if key not in self._running:
            broadcast = ResultsBroadcast(self._store, self._cache, experiment)
            tasks = [asyncio.create_task(broadcast.read()), asyncio.create_task(broadcast.compute())]
            self._running[key] = broadcast, tasks
        broadcast, tasks = self._running[key]
        broadcast.watchers += 1
        try:
            yield broadcast
        finally:
            broadcast.watchers -= 1
            if not broadcast.watchers:
                del self._running[key]
                for task in tasks:
                    task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.gather(*tasks, return_exceptions=True)


def conflated(events: Sequence[pb.ResultsEvent]) -> Sequence[pb.ResultsEvent]:
    """Without results that later ones among them overtook; everything else stays."""
    newest = max((event.sequence for event in events if event.HasField("results")), default=0)
    return [event for event in events if not event.HasField("results") or event.sequence == newest]
