"""Services that stop by themselves are started again, later and later where they do not stay."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from neuroweaver.local.processes import Fleet, Place

MAX_BACKOFF_S: Final = 60.0
WATCH_S: Final = 0.5
# One that ran for so long is started again at once.
STEADY_S: Final = 60.0


@dataclass
class _Kept:
    """A service. restart_at: when it is due, while it is down. is_awaited: started again, not yet healthy."""

    started_at: float
    failures: int = 0
    restart_at: float | None = None
    is_awaited: bool = False


class Restarts:
    """Over a fleet that is healthy. say: tells people a line."""

    def __init__(
        self, fleet: Fleet, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fleet = fleet
        self._say = say
        self._clock = clock
        self._kept = {place.service: _Kept(clock()) for place in fleet.places}

    def look(self) -> None:
        """To be called every second or so."""
        for place in self._fleet.places:
            kept = self._kept[place.service]
            if kept.restart_at is not None:
                if self._clock() >= kept.restart_at:
                    self._start(place, kept)
            elif ending := self._fleet.ending(place):
                self._plan(kept, f"the {place.service} has stopped {ending}")
            elif kept.is_awaited and _is_healthy(place):
                kept.is_awaited = False
                self._say(f"the {place.service} is serving again (process {self._fleet.pid(place.service)})")

    def _plan(self, kept: _Kept, why: str) -> None:
        now = self._clock()
        kept.failures = 0 if now - kept.started_at > STEADY_S else kept.failures
        delay_s = min(2.0**kept.failures, MAX_BACKOFF_S)
        kept.failures += 1
        kept.restart_at = now + delay_s
        self._say(f"{why}; it is started again in {delay_s:.0f} s")

    def _start(self, place: Place, kept: _Kept) -> None:
        kept.restart_at, kept.started_at, kept.is_awaited = None, self._clock(), True
        try:
            self._fleet.start_again(place)
        except OSError as error:
            self._plan(kept, f"the {place.service} cannot be started: {error.strerror}")


def _is_healthy(place: Place) -> bool:
    # A service is asked once it listens: gRPC backs off when refused.
    from neuroweaver.client.connection import Client  # noqa: PLC0415

    if not place.is_listening:
        return False
    with Client({place.service: place.address}) as client:
        return client.is_healthy(place.service, timeout_s=1.0)
