"""Heartbeats of quiet watches: one look at all of them now and then, instead of a timer for each."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final, Protocol

HEARTBEAT_S: Final = 15.0

MOST_A_SECOND: Final = 60
"""So that very many quiet watches cost little: with more than 900 of them, a heartbeat comes later."""

_TICK_S: Final = 0.1


class Beating(Protocol):
    def beat(self) -> None:
        """Nothing was sent for a while."""


class Heartbeats:
    """Calls `beat` of what sent nothing for `period_s`."""

    def __init__(self, period_s: float = HEARTBEAT_S, *, most_a_second: float = MOST_A_SECOND) -> None:
        self._period_s = period_s
        self._tick_s = min(_TICK_S, period_s / 2)
        self._most_a_tick = max(1, round(most_a_second * self._tick_s))
        # By when they sent something last, since all get as long.
        self._sent: OrderedDict[Beating, float] = OrderedDict()
        self._is_ticking = False

    def sent(self, watch: Beating) -> None:
        """Something was sent: the next heartbeat is due when nothing more was for `period_s`."""
        loop = asyncio.get_running_loop()
        self._sent[watch] = loop.time()
        self._sent.move_to_end(watch)
        if not self._is_ticking:
            self._is_ticking = True
            loop.call_later(self._tick_s, self._tick, loop)

    def forget(self, watch: Beating) -> None:
        self._sent.pop(watch, None)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        silent_since = loop.time() - self._period_s
        for _ in range(self._most_a_tick):
            watch = next(iter(self._sent), None)
            if watch is None or self._sent[watch] > silent_since:
                break
            # It comes back when the heartbeat was sent.
            del self._sent[watch]
            watch.beat()
        self._is_ticking = bool(self._sent)
        if self._is_ticking:
            loop.call_later(self._tick_s, self._tick, loop)
