"""What the server is doing, and whether its engine is alive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    PULLING = "pulling"
    """Verifies the digests of the files."""
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Pulse:
    """Progress of an engine, written by its thread and read by any other.

    An engine lives while its work gets on: it forwards tokens of its requests at least every `stall_s`, and
    of a probe of its own every `probe_interval_s` when it has none. So do the tokenizers.

    missed: what there was none of.
    """

    def __init__(
        self,
        stall_s: float,
        probe_interval_s: float,
        clock: Callable[[], float] = time.monotonic,
        missed: str = "the engine has made no token",
    ) -> None:
        self.stall_s = stall_s
        self.probe_interval_s = probe_interval_s
        self.last_token_time: float | None = None
        self._clock = clock
        self._missed = missed
        self._lock = threading.Lock()
        self._progress = clock()
        self._busy_since: float | None = None

    def work(self) -> None:
        """There is something to do; called again and again while there is."""
        with self._lock:
            if self._busy_since is None:
                self._busy_since = self._clock()

    def rest(self) -> None:
        """There is nothing more to do."""
        with self._lock:
            self._busy_since = None

    def beat(self, *, made_tokens: bool) -> None:
        """Tokens went through the network; with `made_tokens` at least one of an answer came out."""
        with self._lock:
            self._progress = self._clock()
            if made_tokens:
                self.last_token_time = time.time()

    def trouble(self) -> str:
        """Why the engine does not live; empty if it does."""
        with self._lock:
            now, busy_since = self._clock(), self._busy_since
            if busy_since is None:
                silent, limit_s = now - self._progress, self.probe_interval_s + self.stall_s
            else:
                silent, limit_s = now - max(self._progress, busy_since), self.stall_s
        if silent <= limit_s:
            return ""
        task = "its probe" if busy_since is None else "the requests at work"
        return f"{self._missed} for {task} in {silent:.0f} s"


class Status:
    """The phases of a server. Safe to use from several threads. tokenizing: the pulse of its tokenizers."""

    def __init__(self, pulse: Pulse, tokenizing: Pulse, clock: Callable[[], float] = time.monotonic) -> None:
        self.pulse = pulse
        self._tokenizing = tokenizing
        self._clock = clock
        self._lock = threading.Lock()
        self._entered: list[tuple[Phase, float]] = [(Phase.PULLING, clock())]
        self._reason = ""
        self.loaded_versions: tuple[str, ...] = ()

    @property
    def phase(self) -> Phase:
        return self._entered[-1][0]

    def enter(self, phase: Phase, reason: str = "") -> None:
        """A server that drains or failed never becomes ready again."""
        with self._lock:
            is_over = self.phase in {Phase.DRAINING, Phase.FAILED}
            if phase is self.phase or (is_over and phase is not Phase.FAILED):
                return
            self._entered.append((phase, self._clock()))
            self._reason = reason

    @property
    def is_ready(self) -> bool:
        return self.phase is Phase.READY and not self._trouble()

    @property
    def is_live(self) -> bool:
        if self.phase is Phase.FAILED:
            return False
        return self.phase not in {Phase.READY, Phase.DRAINING} or not self._trouble()

    def _trouble(self) -> str:
        return self.pulse.trouble() or self._tokenizing.trouble()

    def report(self) -> dict[str, Any]:
        """The JSON of the health answers. phases: seconds, of the current one until now."""
        with self._lock:
            entered, reason = list(self._entered), self._reason
        ends = [at for _, at in entered[1:]] + [self._clock()]
        serves = entered[-1][0] in {Phase.READY, Phase.DRAINING}
        return {
            "phase": entered[-1][0],
            "phases": {phase: round(end - at, 3) for (phase, at), end in zip(entered, ends, strict=True)},
            "last_token_time": self.pulse.last_token_time,
            "loaded_versions": list(self.loaded_versions),
            "reason": reason or (self._trouble() if serves else ""),
        }
