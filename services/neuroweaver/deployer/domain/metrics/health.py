"""Whether a model is fit to serve: its engine proves to make tokens; an open port proves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from neuroweaver.deployer.domain.metrics import thresholds
from neuroweaver.deployer.domain.metrics.thresholds import ThresholdState
from neuroweaver.v1 import deployer_pb2 as pb

# Of the last token, beyond which it proves nothing. A model server probes itself more often than this.
MAX_TOKEN_AGE: Final = timedelta(seconds=60)


@dataclass(frozen=True)
class Serving:
    """What is there of a deployment. failed: replicas that ended by an error. reason: why, in words.

    running, waiting: requests now; None: not known. last_token_time: of any replica that is ready.
    asked_since: when requests began to ask for a token that none made; None: not known.
    """

    desired: int
    ready: int
    failed: int = 0
    reason: str = ""
    running: float | None = None
    waiting: float | None = None
    last_token_time: datetime | None = None
    asked_since: datetime | None = None


@dataclass(frozen=True)
class Health:
    """since: when it came to this state."""

    state: pb.HealthState.ValueType
    reason: str
    thresholds: tuple[ThresholdState, ...] = ()
    since: datetime | None = None


def judged(
    before: Health | None, serving: Serving, states: Sequence[ThresholdState], now: datetime
) -> Health:
    """The health now. before: at the last look; states: the thresholds now."""
    state, reason = _judged(serving, states, now)
    since = before.since if before is not None and before.state == state else now
    return Health(state, reason, tuple(states), since)


def _judged(
    serving: Serving, states: Sequence[ThresholdState], now: datetime
) -> tuple[pb.HealthState.ValueType, str]:
    if not serving.ready:
        return _without_replica(serving)
    age = None if serving.last_token_time is None else now - serving.last_token_time
    if age is None or age > MAX_TOKEN_AGE:
        return _without_token(serving, age, now)
    broken = [thresholds.described(state) for state in states if state.is_breached]
    if broken:
        return pb.HEALTH_STATE_DEGRADED, f"Serves with {'; with '.join(broken)}."
    if serving.ready < serving.desired:
        reason = f": {serving.reason}" if serving.reason else "."
        return pb.HEALTH_STATE_DEGRADED, f"{serving.ready} of {serving.desired} replicas are ready{reason}"
    replicas = "The replica is" if serving.ready == 1 else f"All {serving.ready} replicas are"
    return pb.HEALTH_STATE_HEALTHY, f"{replicas} ready; the last token is {_in_words(age)} old."


def _without_replica(serving: Serving) -> tuple[pb.HealthState.ValueType, str]:
    if not serving.desired:
        return pb.HEALTH_STATE_UNKNOWN, "No replica is wanted now."
    reason = f": {serving.reason}" if serving.reason else "."
    if serving.last_token_time is None and not serving.failed:
        return pb.HEALTH_STATE_UNKNOWN, f"None of {serving.desired} replicas has served yet{reason}"
    return pb.HEALTH_STATE_UNHEALTHY, f"None of {serving.desired} replicas is ready{reason}"


def _without_token(
    serving: Serving, age: timedelta | None, now: datetime
) -> tuple[pb.HealthState.ValueType, str]:
    """Without requests an engine has nothing to prove itself by; with some that waited long it is dead."""
    requests = (serving.running or 0) + (serving.waiting or 0)
    silence = "No token yet" if age is None else f"No token for {_in_words(age)}"
    if requests and serving.asked_since is not None and now - serving.asked_since <= MAX_TOKEN_AGE:
        return pb.HEALTH_STATE_UNKNOWN, f"{silence}; {requests:.0f} requests have just begun to wait for one."
    if requests:
        return pb.HEALTH_STATE_UNHEALTHY, f"{silence}, though {requests:.0f} requests are waiting for one."
    return pb.HEALTH_STATE_UNKNOWN, f"{silence}; no request is waiting for one."


def _in_words(age: timedelta) -> str:
    seconds = max(0, round(age.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"
