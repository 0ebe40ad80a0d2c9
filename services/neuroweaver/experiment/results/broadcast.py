"""Everyone in this process who watches an experiment's results: one computation and one reader serve all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.experiment.domain.model import CONCLUDED
from neuroweaver.experiment.results.results import PERIOD_S, Desk
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.handlers.watch import Signal
from neuroweaver.mesh.wire.errors import Error
from neuroweaver.v1 import experiment_pb2 as pb

_LOG: Final = logging.getLogger("neuroweaver.experiment")

PAGE: Final = 256
_HELD: Final = 64


class Audience:
    """Those of one experiment. signal: says that there are new events."""

    def __init__(self, store: Store, desk: Desk, project: str, test_id: str, last: int) -> None:
        self._store = store
        self._desk = desk
        self._project = project
        self._test_id = test_id
        self._last = last
        # Events after this sequence are at hand.
        self._from = last
        self._held: deque[pb.ResultsEvent] = deque()
        self.signal = Signal()
        self.members = 0

    def after(self, sequence: int) -> Sequence[pb.ResultsEvent] | None:
        """The events after a sequence, without results that later ones overtook; None if not all are held."""
        if sequence < self._from:
            return None
        return conflated([event for event in self._held if event.sequence > sequence])

    async def read(self) -> None:
        """Fetches events as they come, until cancelled."""
        changed = self._store.results_signal(self._project, self._test_id)
        while True:
            seen = changed.count
            with _tolerated():
                async with self._store.read(self._project) as experiments:
                    events = await experiments.result_events(self._test_id, self._last, PAGE)
                self._hold(events)
                if len(events) == PAGE:
                    continue
            await changed.wait(seen, PERIOD_S)

    async def compute(self) -> None:
        """Has results put down as they move, until nothing more can come."""
        while True:
            with _tolerated():
                least_age = timedelta(seconds=0.9 * PERIOD_S)
                found = await self._desk.keep(self._project, self._test_id, least_age)
                if found.results.state == CONCLUDED:
                    return
            await asyncio.sleep(PERIOD_S)

    def _hold(self, events: Sequence[pb.ResultsEvent]) -> None:
        if not events:
            return
        self._held.extend(events)
        self._last = events[-1].sequence
        while len(self._held) > _HELD:
            self._from = self._held.popleft().sequence
        self.signal.notify()


class Audiences:
    def __init__(self, store: Store, desk: Desk) -> None:
        self._store = store
        self._desk = desk
        self._found: dict[tuple[str, str], tuple[Audience, list[asyncio.Task[None]]]] = {}

    @asynccontextmanager
    async def join(self, project: str, test_id: str, last: int) -> AsyncIterator[Audience]:
        """last: a sequence that has been there. The work ends with the last one who leaves."""
        key = (project, test_id)
        if key not in self._found:
            audience = Audience(self._store, self._desk, project, test_id, last)
            tasks = [asyncio.create_task(audience.read()), asyncio.create_task(audience.compute())]
            self._found[key] = audience, tasks
        audience, tasks = self._found[key]
        audience.members += 1
        try:
            yield audience
        finally:
            audience.members -= 1
            if not audience.members:
                del self._found[key]
                for task in tasks:
                    task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.gather(*tasks, return_exceptions=True)


def conflated(events: Sequence[pb.ResultsEvent]) -> Sequence[pb.ResultsEvent]:
    """Without results that later ones among them overtook; everything else stays."""
    newest = max((event.sequence for event in events if event.HasField("results")), default=0)
    return [event for event in events if not event.HasField("results") or event.sequence == newest]


@contextlib.contextmanager
def _tolerated() -> Iterator[None]:
    """The database may be back in a second, and a fault in one computation must not end all watches."""
    try:
        yield
    except (SQLAlchemyError, Error) as error:
        _LOG.warning("results not followed", extra={"cause": type(error).__name__})
    except Exception:  # noqa: BLE001  # it is logged whole, and tried again
        _LOG.exception("results not followed")
