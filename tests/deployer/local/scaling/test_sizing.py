from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from neuroweaver.deployer.domain.backend import Bundle, DesiredRevision, Scaling
from neuroweaver.deployer.local.scaling.autoscaler import Autoscaler, Use
from neuroweaver.deployer.local.scaling.sizing import Load, Sizing
from neuroweaver.v1 import deployer_pb2 as pb

BUNDLE = Bundle("1.0.0", (), "0" * 64)


def bounds(**fields) -> pb.Autoscaling:
    return pb.Autoscaling(**({"max_replicas": 10, "scale_down_delay": Duration(seconds=60)} | fields))


def settled(scaler: Autoscaler, use: Use, replicas: int, *, start: float = 0, seconds: int = 15):
    """What it advises after that long of the same use."""
    for second in range(seconds):
        scaler.look(start + second, use)
        replicas = scaler.advise(start + second, replicas).replicas
    return replicas


@pytest.mark.parametrize(
    ("fields", "use", "replicas", "advised"),
    [
        ({"target_concurrency": 4}, Use(20), 1, 5),
        ({"target_concurrency": 4}, Use(200), 1, 10),
        ({"target_concurrency": 4}, Use(4.3), 1, 1),
        ({"target_concurrency": 4}, Use(4.5), 1, 2),
        ({"target_cpu_percent": 50}, Use(0, cpu=2.0), 2, 4),
        ({}, Use(100, cpu=1.6), 1, 2),
        ({}, Use(100), 3, 3),
        ({"target_memory_percent": 50, "target_cpu_percent": 50}, Use(0, cpu=0.5, memory=1.5), 1, 3),
        ({"min_replicas": 3, "target_concurrency": 4}, Use(0), 1, 3),
    ],
)
def test_the_number_of_replicas_follows_the_use(fields, use, replicas, advised):
    assert settled(Autoscaler(bounds(**fields), 0, replicas), use, replicas) == advised


def test_a_replica_goes_only_after_the_load_was_low_for_the_whole_delay():
    scaler = Autoscaler(bounds(target_concurrency=1), 0, 1)
    assert settled(scaler, Use(5), 1) == 5
    assert settled(scaler, Use(1), 5, start=15, seconds=55) == 5
    assert settled(scaler, Use(1), 5, start=70, seconds=30) == 1


def test_reaction_to_load_takes_less_than_a_minute():
    scaler = Autoscaler(bounds(target_concurrency=2), 0, 1)
    settled(scaler, Use(0), 1, seconds=600)
    replicas = 1
    for second in range(600, 660):
        scaler.look(second, Use(8))
        replicas = scaler.advise(second, replicas).replicas
        if replicas == 4:
            break
    assert replicas == 4
    assert second - 600 <= 10


def test_a_candidate_never_inflates_the_stable_revision():
    sizing, scaled = Sizing(), bounds(target_concurrency=1)
    revisions = (DesiredRevision(1, BUNDLE, 0, 90, scaled), DesiredRevision(2, BUNDLE, 0, 10, scaled))
    sizing.aim_at(revisions, {1: 2}, 0)
    assert sizing.desired == {1: 2, 2: 1}
    for second in range(20):
        sizing.look(Load({1: Use(2), 2: Use(5)}, is_calling=True), second)
    assert sizing.desired == {1: 2, 2: 5}
    assert set(sizing.take_scalings()) == {Scaling(2, 1, 5, "CONCURRENCY")}
    assert sizing.take_scalings() == ()


def test_what_takes_over_is_as_large_as_what_retires():
    sizing, scaled = Sizing(), bounds(target_concurrency=1)
    sizing.aim_at((DesiredRevision(2, BUNDLE, 0, 100, scaled),), {1: 4}, 0)
    assert sizing.desired == {2: 4}


def test_the_same_wish_again_keeps_the_size_that_was_found():
    sizing, scaled = Sizing(), bounds(target_concurrency=1)
    revisions = (DesiredRevision(1, BUNDLE, 0, 100, scaled),)
    sizing.aim_at(revisions, {}, 0)
    for second in range(20):
        sizing.look(Load({1: Use(3)}, is_calling=True), second)
    sizing.aim_at(revisions, {1: 3}, 21)
    assert sizing.desired == {1: 3}
    fewer = (DesiredRevision(1, BUNDLE, 0, 100, bounds(target_concurrency=1, max_replicas=2)),)
    sizing.aim_at(fewer, {1: 3}, 22)
    assert sizing.desired == {1: 2}


def test_it_sleeps_after_the_idle_timeout_and_not_before():
    scaled = bounds(min_replicas=0, target_concurrency=1, idle_timeout=Duration(seconds=60))
    sizing = Sizing()
    sizing.aim_at((DesiredRevision(1, BUNDLE, 0, 100, scaled),), {}, 0)
    assert sizing.desired == {1: 1}
    sizing.called(30)
    sizing.look(Load({}, is_calling=False), 89)
    assert not sizing.is_asleep
    sizing.look(Load({}, is_calling=False), 90)
    assert sizing.is_asleep
    sizing.called(100)
    assert sizing.wake()
    assert not sizing.wake()
    assert sizing.desired == {1: 1}
    assert [each.cause for each in sizing.take_scalings()] == ["IDLE", "FIRST_REQUEST"]


def test_a_fixed_number_of_zero_is_not_woken():
    sizing = Sizing()
    sizing.aim_at((DesiredRevision(1, BUNDLE, 0, 100),), {}, 0)
    assert not sizing.wake()
    assert not sizing.is_asleep
