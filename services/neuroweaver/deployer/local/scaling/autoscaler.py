"""How many replicas a revision needs, by the rule of Kubernetes's HorizontalPodAutoscaler: use over target.

Up at once, by the mean of the last seconds; down only to the most that was needed within `scale_down_delay`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from neuroweaver.v1 import deployer_pb2 as pb

WINDOW_S: Final = 10.0
_TOLERANCE: Final = 0.1
_CPU_PERCENT: Final = 80


@dataclass(frozen=True)
class Use:
    """Of all ready replicas of a revision together, in replicas' worth; None: not measured.

    concurrency: requests running and waiting. cpu, memory: 1.5 is one and a half of one replica's request.
    """

    concurrency: float
    cpu: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Advice:
    """cause: as `DeploymentScaled.cause`."""

    replicas: int
    cause: str


class Autoscaler:
    """Of one revision. now: seconds of one monotonic clock."""

    def __init__(self, bounds: pb.Autoscaling, now: float, replicas: int) -> None:
        self.bounds = bounds
        self._uses: deque[tuple[float, Use]] = deque()
        self._needs: deque[tuple[float, Advice]] = deque([(now, Advice(replicas, "SPEC"))])

    def look(self, now: float, use: Use) -> None:
        self._uses.append((now, use))
        while self._uses[0][0] < now - WINDOW_S:
            self._uses.popleft()

    def advise(self, now: float, replicas: int) -> Advice:
        """replicas: how many are aimed at now. Never 0: being idle is not for one revision to say."""
        least, most = max(1, least_of(self.bounds)), self.bounds.max_replicas
        need = self._need(replicas)
        self._needs.append((now, need))
        has_delay = self.bounds.HasField("scale_down_delay")
        delay_s = self.bounds.scale_down_delay.ToTimedelta().total_seconds() if has_delay else 300.0
        while len(self._needs) > 1 and self._needs[0][0] < now - delay_s:
            self._needs.popleft()
        if need.replicas < replicas:
            highest = max((needed for _, needed in self._needs), key=lambda each: each.replicas)
            need = Advice(min(replicas, highest.replicas), need.cause)
        within = min(most, max(least, need.replicas))
        return Advice(within, need.cause if within == need.replicas or need.replicas > most else "SPEC")

    def _need(self, replicas: int) -> Advice:
        advices = [
            Advice(_enough(use / target, replicas), cause)
            for cause, figure, target in self._targets()
            if (use := self._mean(figure)) is not None
        ]
        return max(advices, key=lambda advice: advice.replicas, default=Advice(replicas, "SPEC"))

    def _targets(self) -> Iterator[tuple[str, Callable[[Use], float | None], float]]:
        """Cause, what is measured, and how much of it one replica is to bear."""
        bounds = self.bounds
        has_others = bounds.HasField("target_concurrency") or bounds.HasField("target_memory_percent")
        if bounds.HasField("target_concurrency"):
            yield "CONCURRENCY", lambda use: use.concurrency, bounds.target_concurrency
        if bounds.HasField("target_memory_percent"):
            yield "MEMORY", lambda use: use.memory, bounds.target_memory_percent / 100
        if bounds.HasField("target_cpu_percent") or not has_others:
            yield "CPU", lambda use: use.cpu, (bounds.target_cpu_percent or _CPU_PERCENT) / 100

    def _mean(self, figure: Callable[[Use], float | None]) -> float | None:
        known = [value for _, use in self._uses if (value := figure(use)) is not None]
        return sum(known) / len(known) if known else None


def least_of(bounds: pb.Autoscaling) -> int:
    return bounds.min_replicas if bounds.HasField("min_replicas") else 1


def idle_timeout_s(bounds: pb.Autoscaling) -> float:
    return bounds.idle_timeout.ToTimedelta().total_seconds() if bounds.HasField("idle_timeout") else 600.0


def _enough(needed: float, replicas: int) -> int:
    """Whole replicas; a need within a tenth of what is there asks for no change."""
    if replicas and abs(needed / replicas - 1) <= _TOLERANCE:
        return replicas
    return math.ceil(needed - 1e-9)
