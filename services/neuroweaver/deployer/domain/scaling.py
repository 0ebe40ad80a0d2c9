"""How many replicas a load needs: as Kubernetes' HorizontalPodAutoscaler reckons, and from zero and to it.

For every target, `ceil(replicas * mean / target)`, nothing within a tenth of the target, and the highest
proposal of all targets counts. Replicas that say nothing, such as ones that still start, count as idle when
the rest is above the target and as right on it when the rest is below, so that no start is answered by a
second one and no silence by taking replicas away. A revision is sized by its own load, hence by its own share
of the traffic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from neuroweaver.v1 import deployer_pb2 as pb

TOLERANCE: Final = 0.1
DEFAULT_CPU_PERCENT: Final = 80
DEFAULT_SCALE_DOWN_DELAY: Final = timedelta(minutes=5)
DEFAULT_IDLE_TIMEOUT: Final = timedelta(minutes=10)
# Below this a quotient is above a whole number by rounding alone.
_ROUNDING: Final = 1e-9


@dataclass(frozen=True)
class Load:
    """What one revision carries now. measured: its ready replicas that told.

    cpu, memory: mean use of what these requested, 1.0 is all of it. concurrency: requests at work or waiting,
    with all of them together and with a router that holds requests for them. None: not measured.
    """

    measured: int
    cpu: float | None = None
    memory: float | None = None
    concurrency: float | None = None
    last_request_time: datetime | None = None


@dataclass(frozen=True)
class Scaler:
    """One revision's autoscaling. replicas: wanted now. since: when it began, or last came from zero.

    recommendations: of the last `scale_down_delay`, each higher than all after it: the first is the highest.
    """

    replicas: int
    since: datetime
    recommendations: tuple[tuple[datetime, int], ...] = ()

    @classmethod
    def begin(cls, replicas: int, now: datetime) -> Scaler:
        """Goes on from the replicas that are there; none of them is taken away before the delay is over."""
        return cls(replicas, now, ((now, replicas),))


@dataclass(frozen=True)
class Decision:
    """cause: as `DeploymentScaled.cause`; empty if the number stays."""

    scaler: Scaler
    cause: str = ""


@dataclass(frozen=True)
class _Proposal:
    replicas: int
    cause: str


def decide(scaler: Scaler, autoscaling: pb.Autoscaling, load: Load, now: datetime) -> Decision:
    """The next number of replicas. Custom metrics are not looked at: they are the cluster's."""
    least = autoscaling.min_replicas if autoscaling.HasField("min_replicas") else 1
    if scaler.replicas == 0 and least == 0:
        return _from_zero(scaler, autoscaling, load, now)
    if least == 0 and _is_idle(scaler, autoscaling, load, now):
        return Decision(Scaler(0, scaler.since), "IDLE" if scaler.replicas else "")
    bounded = min(max(scaler.replicas, least, 1), autoscaling.max_replicas)
    if bounded != scaler.replicas:
        # Bounds that moved hold at once; the load is judged from there, at the next look.
        return Decision(replace(scaler, replicas=bounded, recommendations=((now, bounded),)), "SPEC")
    proposal = _highest(_proposals(scaler.replicas, autoscaling, load), scaler.replicas)
    recommended = min(max(proposal.replicas, least, 1), autoscaling.max_replicas)
    kept = _stabilised(scaler.recommendations, recommended, now - _scale_down_delay(autoscaling), now)
    # Up at once; down only to what was enough for the whole delay.
    replicas = recommended if recommended >= scaler.replicas else min(scaler.replicas, kept[0][1])
    cause = proposal.cause if replicas != scaler.replicas else ""
    return Decision(replace(scaler, replicas=replicas, recommendations=kept), cause)


def share(autoscaling: pb.Autoscaling, weight_percent: int) -> pb.Autoscaling:
    """The bounds of a revision with this share of the traffic, rounded up; at the top at least one."""
    least = autoscaling.min_replicas if autoscaling.HasField("min_replicas") else 1
    shared = pb.Autoscaling()
    shared.CopyFrom(autoscaling)
    shared.min_replicas = portion(least, weight_percent)
    shared.max_replicas = max(1, portion(autoscaling.max_replicas, weight_percent))
    return shared


def portion(replicas: int, weight_percent: int) -> int:
    """So many replicas as carry this share of the traffic, rounded up."""
    return -(-replicas * weight_percent // 100)


def _from_zero(scaler: Scaler, autoscaling: pb.Autoscaling, load: Load, now: datetime) -> Decision:
    if not load.concurrency:
        return Decision(scaler)
    needed = 1
    if autoscaling.HasField("target_concurrency"):
        needed = max(1, _ceil(load.concurrency / autoscaling.target_concurrency))
    return Decision(Scaler.begin(min(needed, autoscaling.max_replicas), now), "FIRST_REQUEST")


def _is_idle(scaler: Scaler, autoscaling: pb.Autoscaling, load: Load, now: datetime) -> bool:
    timeout = (
        autoscaling.idle_timeout.ToTimedelta()
        if autoscaling.HasField("idle_timeout")
        else DEFAULT_IDLE_TIMEOUT
    )
    last = scaler.since if load.last_request_time is None else max(scaler.since, load.last_request_time)
    return not load.concurrency and now - last >= timeout


def _proposals(replicas: int, autoscaling: pb.Autoscaling, load: Load) -> Sequence[_Proposal | None]:
    """One a target; None where it was not measured."""
    proposals: list[_Proposal | None] = []
    aims_at_cpu = autoscaling.HasField("target_cpu_percent")
    aims_at_memory = autoscaling.HasField("target_memory_percent")
    aims_at_concurrency = autoscaling.HasField("target_concurrency")
    if aims_at_cpu or not (aims_at_memory or aims_at_concurrency or autoscaling.custom_metrics):
        percent = autoscaling.target_cpu_percent if aims_at_cpu else DEFAULT_CPU_PERCENT
        proposals.append(_by_mean(replicas, load.measured, load.cpu, percent / 100, "CPU"))
    if aims_at_memory:
        percent = autoscaling.target_memory_percent
        proposals.append(_by_mean(replicas, load.measured, load.memory, percent / 100, "MEMORY"))
    if aims_at_concurrency:
        proposals.append(_by_total(replicas, load.concurrency, autoscaling.target_concurrency))
    return proposals


def _by_mean(replicas: int, measured: int, mean: float | None, target: float, cause: str) -> _Proposal | None:
    if mean is None or measured == 0:
        return None
    measured = min(measured, replicas)
    ratio = mean / target
    silent = 0.0 if ratio > 1 else 1.0
    whole = (ratio * measured + silent * (replicas - measured)) / replicas
    crossed = (whole - 1) * (ratio - 1) < 0
    if crossed or abs(whole - 1) <= TOLERANCE + _ROUNDING:
        return _Proposal(replicas, cause)
    return _Proposal(_ceil(whole * replicas), cause)


def _by_total(replicas: int, total: float | None, target: float) -> _Proposal | None:
    """Requests that wait in a queue are no replica's own, so the total is divided, not a mean of replicas."""
    if total is None:
        return None
    ratio = total / (target * replicas)
    if abs(ratio - 1) <= TOLERANCE + _ROUNDING:
        return _Proposal(replicas, "CONCURRENCY")
    return _Proposal(_ceil(total / target), "CONCURRENCY")


def _highest(proposals: Sequence[_Proposal | None], replicas: int) -> _Proposal:
    """Where a target was not measured it might ask for more: then nothing is taken away."""
    known = [proposal for proposal in proposals if proposal is not None]
    if not known:
        return _Proposal(replicas, "")
    highest = max(known, key=lambda proposal: proposal.replicas)
    if len(known) < len(proposals) and highest.replicas < replicas:
        return _Proposal(replicas, "")
    return highest


def _stabilised(
    recommendations: tuple[tuple[datetime, int], ...], recommended: int, oldest: datetime, now: datetime
) -> tuple[tuple[datetime, int], ...]:
    kept = [
        (time, replicas) for time, replicas in recommendations if time > oldest and replicas > recommended
    ]
    return (*kept, (now, recommended))


def _scale_down_delay(autoscaling: pb.Autoscaling) -> timedelta:
    if autoscaling.HasField("scale_down_delay"):
        return autoscaling.scale_down_delay.ToTimedelta()
    return DEFAULT_SCALE_DOWN_DELAY


def _ceil(value: float) -> int:
    return math.ceil(value - _ROUNDING)
