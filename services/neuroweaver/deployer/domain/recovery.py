"""What is done when a model is unfit: a switch to its backup, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.domain.metrics.health import Health
from neuroweaver.v1 import deployer_pb2 as pb

SWITCH_BACK_AFTER: Final = timedelta(minutes=5)


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
    is_wanted = policy.auto_switch and policy.HasField("backup")
    after = policy.switch_after.ToTimedelta()
    if not is_wanted or watch.unfit_since is None or now - watch.unfit_since < after:
        return Decision(watch)
    fit = {pb.HEALTH_STATE_HEALTHY}
    if health.state == pb.HEALTH_STATE_UNHEALTHY:
        fit |= {pb.HEALTH_STATE_DEGRADED}
    if backup is None or backup_ready < 1 or backup.state not in fit:
        return Decision(watch)
    seconds = round((now - watch.unfit_since).total_seconds())
    watch = replace(watch, is_automatic=True, healthy_since=None)
    return Decision(watch, Move.TO_BACKUP, f"Unfit for {seconds} s: {health.reason}")


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
        threshold.is_breached for threshold in health.thresholds
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
    watch = replace(watch, is_automatic=False, unfit_since=None)
    return Decision(watch, Move.BACK, f"Healthy again for {minutes} minutes.")
