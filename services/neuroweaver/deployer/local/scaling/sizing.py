"""How many replicas each revision of a deployment aims at: as desired, by load, or 0 while nobody calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neuroweaver.deployer.domain.backend import DesiredRevision, Scaling
from neuroweaver.deployer.local.scaling.autoscaler import Autoscaler, Use, idle_timeout_s, least_of


@dataclass(frozen=True)
class Load:
    """uses: by revision. is_calling: whether requests are under way or waiting."""

    uses: Mapping[int, Use]
    is_calling: bool


class Sizing:
    """now: seconds of one monotonic clock."""

    def __init__(self) -> None:
        self.desired: dict[int, int] = {}
        self._revisions: tuple[DesiredRevision, ...] = ()
        self._scalers: dict[int, Autoscaler] = {}
        self._scalings: list[Scaling] = []
        self._last_call = 0.0

    def aim_at(self, revisions: tuple[DesiredRevision, ...], there: Mapping[int, int], now: float) -> None:
        """there: replicas that run already, by revision; what retires passes its size on."""
        numbers = {revision.number for revision in revisions}
        retiring = sum(count for revision, count in there.items() if revision not in numbers)
        if numbers != {revision.number for revision in self._revisions}:
            self._last_call = now
        self._revisions = revisions
        self.desired = {
            revision.number: self._aim(revision, there.get(revision.number, 0) or retiring, now)
            for revision in revisions
        }
        self._scalers = {number: scaler for number, scaler in self._scalers.items() if number in numbers}

    def look(self, load: Load, now: float) -> None:
        """A sample of the load, and what follows from it."""
        if load.is_calling:
            self._last_call = now
        if self._is_idle(now):
            for number, replicas in self.desired.items():
                self._scale(number, replicas, 0, "IDLE")
            return
        for number, scaler in self._scalers.items():
            replicas = self.desired[number]
            if replicas and (use := load.uses.get(number)):
                scaler.look(now, use)
                advice = scaler.advise(now, replicas)
                self._scale(number, replicas, advice.replicas, advice.cause)

    def called(self, now: float) -> None:
        """A request came."""
        self._last_call = now

    def wake(self) -> bool:
        """A request waits. Whether something is to be started for it."""
        asleep = self.asleep
        for number in asleep:
            self._scale(number, 0, 1, "FIRST_REQUEST")
        return bool(asleep)

    @property
    def asleep(self) -> list[int]:
        """The revisions that a request starts."""
        return [
            revision.number
            for revision in self._revisions
            if revision.autoscaling and revision.weight_percent and not self.desired[revision.number]
        ]

    @property
    def is_asleep(self) -> bool:
        """Scaled to zero, and able to start by a request."""
        return bool(self._scalers) and not any(self.desired.values())

    @property
    def may_sleep(self) -> bool:
        return any(each.autoscaling and least_of(each.autoscaling) == 0 for each in self._revisions)

    def take_scalings(self) -> tuple[Scaling, ...]:
        """Those since the last call."""
        taken, self._scalings = tuple(self._scalings), []
        return taken

    def _aim(self, revision: DesiredRevision, there: int, now: float) -> int:
        bounds, before = revision.autoscaling, self.desired.get(revision.number)
        if bounds is None:
            self._scalers.pop(revision.number, None)
            return revision.replicas
        scaler = self._scalers.get(revision.number)
        if scaler is not None and scaler.bounds == bounds and before is not None:
            return before
        aim = min(bounds.max_replicas, max(1, least_of(bounds), there if before is None else before))
        self._scalers[revision.number] = Autoscaler(bounds, now, aim)
        return aim

    def _is_idle(self, now: float) -> bool:
        bounds = [revision.autoscaling for revision in self._revisions]
        return bool(bounds) and all(
            each is not None and least_of(each) == 0 and now - self._last_call >= idle_timeout_s(each)
            for each in bounds
        )

    def _scale(self, revision: int, before: int, after: int, cause: str) -> None:
        if before != after:
            self.desired[revision] = after
            self._scalings.append(Scaling(revision, before, after, cause))
