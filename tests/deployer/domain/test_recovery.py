from datetime import UTC, datetime, timedelta

import pytest

from deployer.world import stored
from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.domain.defaults import filled
from neuroweaver.deployer.domain.metrics.health import Health
from neuroweaver.deployer.domain.metrics.thresholds import ThresholdState
from neuroweaver.deployer.domain.recovery import Move, Watch, cycle, decide
from neuroweaver.v1 import deployer_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HEALTHY = Health(pb.HEALTH_STATE_HEALTHY, "fine")
UNHEALTHY = Health(pb.HEALTH_STATE_UNHEALTHY, "No token for 85 min.")
DEGRADED = Health(pb.HEALTH_STATE_DEGRADED, "1 of 2 replicas are ready.")
INACCURATE = Health(
    pb.HEALTH_STATE_DEGRADED,
    "Serves with accuracy of 0.700, not at least 0.850.",
    (ThresholdState(pb.THRESHOLD_KIND_ACCURACY, 0.85, 0.7, is_breached=True),),
)
WITH_BACKUP = pb.RecoveryPolicy(backup=pb.BackupModel(model_id="spare"))


def seconds(count):
    return NOW + timedelta(seconds=count)


def moves(course, policy=WITH_BACKUP, *, backup=HEALTHY, backup_ready=1, is_switched=False, watch=None):
    """The moves and their times. course: (second, health) pairs."""
    watch, found = watch or Watch(), []
    for at, health in course:
        decision = decide(
            watch,
            filled(policy),
            health,
            backup,
            seconds(at),
            backup_ready=backup_ready,
            is_switched=is_switched,
        )
        watch = stored(decision.watch)
        if decision.move != Move.STAY:
            found.append((at, decision.move))
            is_switched = decision.move == Move.TO_BACKUP
    return found


def test_traffic_moves_to_the_backup_after_half_a_minute_and_not_before():
    course = [(at, UNHEALTHY) for at in range(0, 60, 10)]
    assert moves(course) == [(30, Move.TO_BACKUP)]
    assert moves([(0, UNHEALTHY), (25, HEALTHY), (26, UNHEALTHY), (50, UNHEALTHY)]) == []


@pytest.mark.parametrize(
    "policy",
    [pb.RecoveryPolicy(), pb.RecoveryPolicy(backup=pb.BackupModel(model_id="spare"), auto_switch=False)],
)
def test_nothing_moves_without_a_backup_or_where_a_person_shall_decide(policy):
    assert moves([(0, UNHEALTHY), (100, UNHEALTHY)], policy) == []


def test_nothing_moves_to_a_backup_that_is_not_ready():
    course = [(0, UNHEALTHY), (100, UNHEALTHY)]
    assert moves(course, backup_ready=0) == []
    assert moves(course, backup=UNHEALTHY) == []
    assert moves(course, backup=None) == []
    assert moves(course, backup=Health(pb.HEALTH_STATE_UNKNOWN, "")) == []


def test_a_broken_threshold_moves_traffic_to_a_healthy_backup_only():
    course = [(0, INACCURATE), (40, INACCURATE)]
    assert moves(course) == [(40, Move.TO_BACKUP)]
    assert moves(course, backup=DEGRADED) == []
    # One that serves nothing is worse than a degraded backup; one with too few replicas is not unfit.
    assert moves([(0, UNHEALTHY), (40, UNHEALTHY)], backup=DEGRADED) == [(40, Move.TO_BACKUP)]
    assert moves([(0, DEGRADED), (400, DEGRADED)]) == []


def test_traffic_returns_after_five_healthy_minutes_where_that_is_wanted():
    policy = pb.RecoveryPolicy(backup=pb.BackupModel(model_id="spare"), auto_switch_back=True)
    course = [(0, UNHEALTHY), (30, UNHEALTHY), (100, HEALTHY), (200, DEGRADED), (300, HEALTHY)]
    course += [(599, HEALTHY), (600, HEALTHY)]
    assert moves(course, policy) == [(30, Move.TO_BACKUP), (600, Move.BACK)]
    assert moves(course) == [(30, Move.TO_BACKUP)]


def test_what_a_person_switched_is_not_switched_back():
    policy = pb.RecoveryPolicy(backup=pb.BackupModel(model_id="spare"), auto_switch_back=True)
    assert moves([(0, HEALTHY), (1000, HEALTHY)], policy, is_switched=True) == []


def test_cycles_of_backups_are_found_and_chains_are_none():
    a, b, c, d = (Key("p", "m", name) for name in "abcd")
    assert cycle(a, None, {b: a}) == ()
    assert cycle(a, b, {b: c, c: d}) == ()
    assert cycle(a, a, {}) == (a, a)
    assert cycle(a, b, {b: c, c: a}) == (a, b, c, a)
    # One that others made does not run for ever.
    assert cycle(a, b, {b: c, c: b}) == (a, b, c, b)
