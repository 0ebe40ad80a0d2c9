"""What is done when replicas fail or a model is unfit: restarts with a back-off, a switch to the backup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from neuroweaver.deployer.backend import Key
from neuroweaver.deployer.health import Health
from neuroweaver.mesh.clock import from_microseconds, microseconds
from neuroweaver.v1 import deployer_pb2 as pb

DEFAULT_BACKOFF: Final = timedelta(seconds=1)
DEFAULT_MAX_BACKOFF: Final = timedelta(minutes=5)
DEFAULT_CRASH_LOOP_RESTARTS: Final = 5
DEFAULT_SWITCH_AFTER: Final = timedelta(seconds=30)
# Restarts are counted over this time, and a replica that ran for as long begins anew with its waits.
CRASH_LOOP_WINDOW: Final = timedelta(minutes=10)
SWITCH_BACK_AFTER: Final = timedelta(minutes=5)
_MOST_TIMES: Final = 100


@dataclass(frozen=True)
class Restarts:
    """Failures of a replica. in_a_row: without a long run in between. times: of the latest ones."""

    in_a_row: int = 0
    times: tuple[datetime, ...] = ()

    def after_end(self, ran: timedelta, now: datetime) -> Restarts:
        """Once it ended by an error, after a run of this length."""
        in_a_row = 0 if ran >= CRASH_LOOP_WINDOW else self.in_a_row
        recent = tuple(time for time in self.times if now - time < CRASH_LOOP_WINDOW)
        return Restarts(in_a_row + 1, (*recent, now)[-_MOST_TIMES:])

    def delay(self, policy: pb.RecoveryPolicy) -> timedelta:
        """The wait before the next start: doubled at each, without chance. Zero before the first failure."""
        if not self.in_a_row:
            return timedelta(0)
        first: timedelta = DEFAULT_BACKOFF
        most: timedelta = DEFAULT_MAX_BACKOFF
        if policy.HasField("restart_backoff"):
            first = policy.restart_backoff.ToTimedelta()
        if policy.HasField("max_restart_backoff"):
            most = policy.max_restart_backoff.ToTimedelta()
        wait: timedelta = first * 2 ** min(self.in_a_row - 1, 20)
        return min(most, wait)

    def is_crash_loop(self, policy: pb.RecoveryPolicy, now: datetime) -> bool:
        enough = (
            policy.crash_loop_restarts
            if policy.HasField("crash_loop_restarts")
            else DEFAULT_CRASH_LOOP_RESTARTS
        )
        return sum(now - time < CRASH_LOOP_WINDOW for time in self.times) >= enough

    def to_json(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row, "times": [microseconds(time) for time in self.times]}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Restarts:
        return cls(plain["in_a_row"], tuple(from_microseconds(time) for time in plain["times"]))


class Move(StrEnum):
    """What is to be done with the traffic."""

    STAY = "STAY"
    TO_BACKUP = "TO_BACKUP"
    BACK = "BACK"


@dataclass(frozen=True)
class Watch:
    """Since when a model is unfit, or healthy; neither: both None.

    is_automatic: whether the deployer itself made the switch that is in force; one that a person made is a
    person's to undo.
    """

    unfit_since: datetime | None = None
    healthy_since: datetime | None = None
    is_automatic: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "unfit_since": None if self.unfit_since is None else microseconds(self.unfit_since),
            "healthy_since": None if self.healthy_since is None else microseconds(self.healthy_since),
            "is_automatic": self.is_automatic,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Watch:
        unfit, healthy = (
            None if plain[name] is None else from_microseconds(plain[name])
            for name in ("unfit_since", "healthy_since")
        )
        return cls(unfit, healthy, plain["is_automatic"])


@dataclass(frozen=True)
class Decision:
    """reason: in words, for the event; empty if nothing moves."""

    watch: Watch
    move: Move = Move.STAY
    reason: str = ""


def decide(
    watch: Watch,
    policy: pb.RecoveryPolicy,
    health: Health,
    backup: Health | None,
    now: datetime,
    *,
    backup_ready: int,
    is_switched: bool,
) -> Decision:
    """Whether the traffic moves now. health: the model's own. backup, backup_ready: the backup model's; None:
    there is none. is_switched: whether the traffic is elsewhere already.

    Unfit is a model that is unhealthy or beyond a threshold. What it would move to must be better: for an
    unhealthy model a backup that serves, for one beyond a threshold a healthy one.
    """
    watch = _watched(watch, health, now)
    if is_switched:
        return _back(watch, policy, now)
    watch = replace(watch, is_automatic=False)
    after = policy.switch_after.ToTimedelta() if policy.HasField("switch_after") else DEFAULT_SWITCH_AFTER
    is_wanted = policy.HasField("backup") and (policy.auto_switch or not policy.HasField("auto_switch"))
    if not is_wanted or watch.unfit_since is None or now - watch.unfit_since < after:
        return Decision(watch)
    fit = {pb.HEALTH_STATE_HEALTHY}
    if health.state == pb.HEALTH_STATE_UNHEALTHY:
        fit |= {pb.HEALTH_STATE_DEGRADED}
    if backup is None or backup_ready < 1 or backup.state not in fit:
        return Decision(watch)
    seconds = round((now - watch.unfit_since).total_seconds())
    return Decision(
        replace(watch, is_automatic=True, healthy_since=None),
        Move.TO_BACKUP,
        f"Unfit for {seconds} s: {health.reason}",
    )


def cycle(start: Key, backup: Key | None, backups: Mapping[Key, Key]) -> tuple[Key, ...]:
    """The way from a deployment through its backups back to itself or to one passed before; empty if it ends.

    backup: that the deployment shall have. backups: those that others have.
    """
    way, at = [start], backup
    while at is not None:
        way.append(at)
        if at in way[:-1]:
            return tuple(way)
        at = backups.get(at)
    return ()


def _watched(watch: Watch, health: Health, now: datetime) -> Watch:
    is_unfit = health.state == pb.HEALTH_STATE_UNHEALTHY or any(
        each.is_breached for each in health.thresholds
    )
    is_healthy = health.state == pb.HEALTH_STATE_HEALTHY
    return replace(
        watch,
        unfit_since=(watch.unfit_since or now) if is_unfit else None,
        healthy_since=(watch.healthy_since or now) if is_healthy else None,
    )


def _back(watch: Watch, policy: pb.RecoveryPolicy, now: datetime) -> Decision:
    is_wanted = policy.auto_switch_back and watch.is_automatic
    if not is_wanted or watch.healthy_since is None or now - watch.healthy_since < SWITCH_BACK_AFTER:
        return Decision(watch)
    minutes = round((now - watch.healthy_since).total_seconds() / 60)
    return Decision(
        replace(watch, is_automatic=False, unfit_since=None),
        Move.BACK,
        f"Healthy again for {minutes} minutes.",
    )
