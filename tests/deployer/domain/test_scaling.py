from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroweaver.deployer.domain.scaling import Load, Scaler, decide, portion, share
from neuroweaver.v1 import deployer_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def seconds(count):
    return NOW + timedelta(seconds=count)


def scaled(scaler, autoscaling, load, at=1):
    decision = decide(scaler, autoscaling, load, seconds(at))
    return decision.scaler.replicas, decision.cause


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        (0.80, (4, "")),
        (0.88, (4, "")),  # exactly a tenth above the target
        (0.89, (5, "CPU")),  # 4 * 0.89 / 0.8 = 4.45
        (1.60, (8, "CPU")),
        (9.00, (10, "CPU")),  # max_replicas
    ],
)
def test_replicas_grow_with_the_ratio_of_use_and_target(cpu, expected):
    autoscaling = pb.Autoscaling(max_replicas=10, target_cpu_percent=80)
    assert scaled(Scaler.begin(4, NOW), autoscaling, Load(4, cpu=cpu)) == expected


def test_cpu_at_80_percent_is_the_target_where_none_is_given():
    assert scaled(Scaler.begin(1, NOW), pb.Autoscaling(max_replicas=9), Load(1, cpu=1.6)) == (2, "CPU")


def test_the_highest_proposal_counts_and_names_the_cause():
    autoscaling = pb.Autoscaling(max_replicas=10, target_cpu_percent=50, target_concurrency=4)
    load = Load(2, cpu=0.7, concurrency=21)  # 3 by CPU, 6 by 21 / 4
    assert scaled(Scaler.begin(2, NOW), autoscaling, load) == (6, "CONCURRENCY")


def test_a_replica_that_still_starts_is_not_answered_by_a_further_one():
    autoscaling = pb.Autoscaling(max_replicas=10, target_cpu_percent=50)
    # One of two is ready and at 200 % of its target: (2.0 + 0) / 2 is the target.
    assert scaled(Scaler.begin(2, NOW), autoscaling, Load(1, cpu=1.0)) == (2, "")
    assert scaled(Scaler.begin(2, NOW), autoscaling, Load(1, cpu=2.0)) == (4, "CPU")


def test_silent_replicas_are_not_taken_for_idle_ones():
    autoscaling = pb.Autoscaling(max_replicas=10, target_cpu_percent=50, scale_down_delay={"seconds": 0})
    # (0.1 / 0.5 + 3 * 1) / 4 * 4 = 3.2
    assert scaled(Scaler.begin(4, NOW), autoscaling, Load(1, cpu=0.05)) == (4, "")
    assert scaled(Scaler.begin(4, NOW), autoscaling, Load(4, cpu=0.05)) == (1, "CPU")


def test_nothing_is_taken_away_while_a_target_is_not_measured():
    autoscaling = pb.Autoscaling(
        max_replicas=10, target_cpu_percent=50, target_concurrency=2, scale_down_delay={"seconds": 0}
    )
    assert scaled(Scaler.begin(4, NOW), autoscaling, Load(4, cpu=0.1)) == (4, "")
    assert scaled(Scaler.begin(4, NOW), autoscaling, Load(4, cpu=1.0)) == (8, "CPU")
    assert scaled(Scaler.begin(4, NOW), autoscaling, Load(4, cpu=0.1, concurrency=2.0)) == (1, "CPU")


def test_down_only_to_what_was_enough_for_the_whole_delay():
    autoscaling = pb.Autoscaling(max_replicas=10, target_concurrency=1, scale_down_delay={"seconds": 60})
    scaler = Scaler.begin(8, NOW)
    seen = []
    for at, concurrency in [(10, 2), (30, 5), (50, 2), (65, 2), (95, 2), (109, 2), (111, 2)]:
        decision = decide(scaler, autoscaling, Load(scaler.replicas, concurrency=concurrency), seconds(at))
        scaler = decision.scaler
        seen.append(scaler.replicas)
    # The 8 of the beginning count until 60, the 5 of second 30 until 90.
    assert seen == [8, 8, 8, 5, 2, 2, 2]


def test_up_at_once_after_going_down():
    autoscaling = pb.Autoscaling(max_replicas=10, target_concurrency=1, scale_down_delay={"seconds": 0})
    scaler = decide(Scaler.begin(8, NOW), autoscaling, Load(8, concurrency=2), seconds(1)).scaler
    assert scaler.replicas == 2
    assert scaled(scaler, autoscaling, Load(2, concurrency=7), 2) == (7, "CONCURRENCY")


def test_the_last_replica_ends_after_the_idle_time_and_the_first_request_brings_it_back():
    autoscaling = pb.Autoscaling(
        min_replicas=0, max_replicas=3, target_concurrency=2, idle_timeout={"seconds": 60}
    )
    scaler = Scaler.begin(1, NOW)
    quiet = Load(1, concurrency=0, last_request_time=seconds(20))
    assert scaled(scaler, autoscaling, quiet, 79) == (1, "")
    decision = decide(scaler, autoscaling, quiet, seconds(80))
    assert (decision.scaler.replicas, decision.cause) == (0, "IDLE")
    assert scaled(decision.scaler, autoscaling, Load(0, concurrency=0), 90) == (0, "")
    woken = decide(decision.scaler, autoscaling, Load(0, concurrency=5), seconds(95))
    assert (woken.scaler.replicas, woken.cause) == (3, "FIRST_REQUEST")
    # The idle time counts from there, though the last request ended long ago.
    assert scaled(woken.scaler, autoscaling, quiet, 100) == (3, "")


def test_a_request_that_runs_long_is_no_idle_time():
    autoscaling = pb.Autoscaling(min_replicas=0, max_replicas=3, idle_timeout={"seconds": 60})
    load = Load(1, cpu=0.8, concurrency=1, last_request_time=NOW)
    assert scaled(Scaler.begin(1, NOW), autoscaling, load, 600) == (1, "")


def test_zero_is_not_reached_by_a_low_load_alone():
    autoscaling = pb.Autoscaling(min_replicas=0, max_replicas=3, scale_down_delay={"seconds": 0})
    load = Load(2, cpu=0.0, concurrency=0, last_request_time=NOW)
    assert scaled(Scaler.begin(2, NOW), autoscaling, load, 1) == (1, "CPU")


@pytest.mark.parametrize(("replicas", "expected"), [(0, 2), (1, 2), (9, 5), (3, 3)])
def test_bounds_that_moved_hold_at_once(replicas, expected):
    autoscaling = pb.Autoscaling(min_replicas=2, max_replicas=5)
    cause = "SPEC" if replicas != expected else ""
    assert scaled(Scaler.begin(replicas, NOW), autoscaling, Load(replicas)) == (expected, cause)


def test_each_revision_has_the_bounds_of_its_own_share():
    autoscaling = pb.Autoscaling(min_replicas=3, max_replicas=10, target_concurrency=4)
    shared = share(autoscaling, 25)
    assert (shared.min_replicas, shared.max_replicas, shared.target_concurrency) == (1, 3, 4)
    assert (share(autoscaling, 100).min_replicas, share(autoscaling, 100).max_replicas) == (3, 10)
    assert (share(autoscaling, 0).min_replicas, share(autoscaling, 0).max_replicas) == (0, 1)
    assert autoscaling.min_replicas == 3


def test_a_portion_is_rounded_up_exactly():
    assert [portion(10, percent) for percent in (0, 1, 10, 11, 70, 100)] == [0, 1, 1, 2, 7, 10]


loads = st.builds(
    Load,
    measured=st.integers(0, 12),
    cpu=st.none() | st.floats(0, 20),
    memory=st.none() | st.floats(0, 2),
    concurrency=st.none() | st.floats(0, 1000),
    last_request_time=st.none() | st.integers(0, 2000).map(seconds),
)


@given(
    st.integers(0, 12),
    st.integers(0, 6),
    st.integers(0, 6),
    st.lists(st.tuples(st.integers(1, 400), loads), max_size=30),
)
def test_the_number_keeps_to_its_bounds_and_its_memory_to_the_number_of_replicas(
    replicas, least, above, course
):
    autoscaling = pb.Autoscaling(
        min_replicas=least, max_replicas=max(1, least + above), target_cpu_percent=60
    )
    scaler, at = Scaler.begin(replicas, NOW), 0
    for pause, load in course:
        at += pause
        decision = decide(scaler, autoscaling, load, seconds(at))
        assert bool(decision.cause) == (decision.scaler.replicas != scaler.replicas)
        scaler = decision.scaler
        assert least <= scaler.replicas <= autoscaling.max_replicas
        assert len(scaler.recommendations) <= max(replicas, autoscaling.max_replicas) + 1
