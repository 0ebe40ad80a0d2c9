from dataclasses import replace
from datetime import timedelta
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer.world import CRASH_LOOP, LOADING, NOW, READY, World, spec
from neuroweaver.deployer.domain import messages
from neuroweaver.deployer.domain.metrics.counts import Counts, Sum
from neuroweaver.deployer.domain.rollouts import replacing, transitions
from neuroweaver.deployer.domain.rollouts.rollout import RevisionSeen, Seen
from neuroweaver.v1 import deployer_pb2 as pb

STARTING = pb.ROLLOUT_STATE_STARTING
BAKING = pb.ROLLOUT_STATE_BAKING
HELD = pb.ROLLOUT_STATE_HELD
PROMOTING = pb.ROLLOUT_STATE_PROMOTING
ROLLING_BACK = pb.ROLLOUT_STATE_ROLLING_BACK
PROMOTED = pb.ROLLOUT_STATE_PROMOTED
ROLLED_BACK = pb.ROLLOUT_STATE_ROLLED_BACK
ERRORS = pb.ROLLOUT_METRIC_ERROR_RATE
LATENCY = pb.ROLLOUT_METRIC_LATENCY_P95
QUALITY = pb.ROLLOUT_METRIC_JUDGED_QUALITY
RECREATE = pb.REPLACEMENT_MODE_RECREATE
SWAP = pb.REPLACEMENT_MODE_SWAP_ADAPTER


def weights(world):
    """The candidate's share of the traffic as it went, each value once."""
    return [weight for weight, _ in groupby(rollout.candidate_weight for rollout in world.history)]


def states(world):
    return [state for state, _ in groupby(rollout.state for rollout in world.history)]


def test_without_a_canary_all_traffic_moves_as_soon_as_the_candidate_is_ready():
    world = World(spec())
    world.run()
    assert world.rollout.state == PROMOTED
    assert weights(world) == [0, 100]
    # 1 s until the desired state, 10 s until it is ready, 1 s until the old one is seen to be gone.
    assert world.elapsed == 12
    assert states(world) == [STARTING, PROMOTING, PROMOTED]
    (target,) = replacing.targets(world.rollout, world.spec)
    assert (target.revision, target.replicas, target.weight_percent) == (2, 1, 100)


def test_a_canary_goes_through_its_steps_each_for_its_bake_time():
    world = World(spec(10, 50, bake=60))
    world.run()
    assert weights(world) == [0, 10, 50, 100]
    begun = {
        rollout.step: rollout.step_start
        for rollout in reversed(world.history)
        if rollout.step_start is not None
    }
    assert begun[2] - begun[1] == timedelta(seconds=60)
    assert states(world) == [STARTING, BAKING, PROMOTING, PROMOTED]


def test_the_candidate_has_the_replicas_of_a_step_before_it_gets_its_traffic():
    world = World(spec(10, 50, 100, replicas=4))
    seen_weights = {}
    while not world.rollout.is_over:
        world.tick()
        if world.rollout.state == BAKING:
            assert world.rollout.stable_replicas == 4
            seen_weights.setdefault(world.rollout.candidate_weight, world.seen().candidate.ready)
    assert seen_weights == {10: 1, 50: 2, 100: 4}


def test_replicas_are_replaced_within_surge_and_without_a_gap():
    world = World(spec(replicas=3, max_surge=1))
    for seen in world.ticks():
        assert seen.stable.current + seen.candidate.current <= 4
        assert seen.stable.ready + seen.candidate.ready >= 3
    # One comes, one goes: traffic goes by ready replicas, 1 of 4, 1 of 3, 2 of 4, …
    assert weights(world) == [0, 25, 33, 50, 66, 100]


def test_without_room_to_surge_old_replicas_go_first():
    world = World(spec(replicas=3, max_surge=0, max_unavailable=1))
    for seen in world.ticks():
        assert seen.stable.current + seen.candidate.current <= 3
        assert seen.stable.ready + seen.candidate.ready >= 2
    assert world.rollout.state == PROMOTED


def test_recreate_ends_the_old_before_the_new_begins():
    world = World(spec(replicas=2), mode=RECREATE)
    world.drain_s = 20
    for seen in world.ticks():
        assert not (seen.stable.current and seen.candidate.current)
    assert world.rollout.state == PROMOTED


def test_recreate_goes_back_to_the_old_when_the_new_is_gone():
    world = World(spec(), mode=RECREATE)
    world.broken = {2}
    world.drain_s = 5
    for seen in world.ticks():
        assert not (seen.stable.current and seen.candidate.current)
    assert world.rollout.state == ROLLED_BACK
    (target,) = replacing.targets(world.rollout, world.spec)
    assert (target.revision, target.replicas, target.weight_percent) == (1, 1, 100)


def test_a_swap_waits_until_every_replica_has_the_adapter():
    made = spec(replicas=2)
    rollout = transitions.begin(1, 2, made, SWAP, NOW)
    both = RevisionSeen(phases=(READY, READY))
    rollout = transitions.step(rollout, made, Seen(stable=both), NOW)
    assert (rollout.stable_replicas, rollout.candidate_replicas, rollout.candidate_weight) == (2, 2, 0)
    one = RevisionSeen(phases=(READY,))
    rollout = transitions.step(rollout, made, Seen(stable=both, candidate=one), NOW)
    assert (rollout.state, rollout.candidate_weight) == (STARTING, 0)
    rollout = transitions.step(rollout, made, Seen(stable=both, candidate=both), NOW)
    assert (rollout.state, rollout.stable_replicas, rollout.candidate_weight) == (PROMOTING, 0, 100)
    rollout = transitions.step(rollout, made, Seen(candidate=both), NOW)
    assert rollout.state == PROMOTED
    assert replacing.peak_replicas(made, SWAP, 2) == 2


def test_the_first_revision_needs_no_canary_and_is_not_given_up():
    world = World(spec(10, 50), stable=0, candidate=1)
    world.run()
    assert (states(world), weights(world)) == ([STARTING, PROMOTING, PROMOTED], [0, 100])
    world = World(spec(10, 50), stable=0, candidate=1)
    world.broken = {1}
    world.run(most_s=2000)
    assert world.rollout.state == STARTING
    assert "no revision to go back to" in world.rollout.message
    (target,) = replacing.targets(world.rollout, world.spec)
    assert (target.replicas, target.weight_percent) == (1, 0)
    world.broken = set()
    assert world.run().state == PROMOTED


def test_a_revision_that_served_before_needs_no_canary():
    world = World(spec(10, 50), is_proven=True)
    world.run()
    assert weights(world) == [0, 100]


def test_no_replicas_no_start():
    world = World(spec(10, replicas=0))
    world.tick()
    assert world.rollout.state == PROMOTED
    assert replacing.targets(world.rollout, world.spec)[0].replicas == 0


def test_a_crash_loop_rolls_back_at_once_with_the_reason():
    world = World(spec(10))
    world.broken = {2}
    world.run()
    assert world.rollout.state == ROLLED_BACK
    assert world.elapsed < 10
    assert "again and again: it is broken" in world.rollout.message
    assert weights(world) == [0]


def test_a_crash_loop_of_one_replica_is_no_failure_while_enough_are_ready():
    made = spec(10, replicas=2)
    rollout = transitions.begin(1, 2, made, 0, NOW)
    seen = Seen(
        stable=RevisionSeen(phases=(READY, READY)), candidate=RevisionSeen(phases=(READY, CRASH_LOOP))
    )
    assert transitions.step(rollout, made, seen, NOW).state == BAKING


def test_no_progress_until_the_deadline_rolls_back():
    world = World(spec(10, progress_deadline={"seconds": 120}))
    world.broken, world.phase_when_broken = {2}, LOADING
    world.run()
    assert world.rollout.state == ROLLED_BACK
    # It began to load in second 2, when it was first seen.
    assert world.elapsed == 2 + 120 + 1
    assert "no progress for 2 minutes" in world.rollout.message


def test_each_phase_is_progress_and_going_round_in_circles_is_none():
    made = spec(10, progress_deadline={"seconds": 60})
    rollout = transitions.begin(1, 2, made, 0, NOW)
    stable = RevisionSeen(phases=(READY,))
    course = [pb.REPLICA_PHASE_SCHEDULING, pb.REPLICA_PHASE_PULLING, LOADING, pb.REPLICA_PHASE_WARMING]
    now = NOW
    for phase in course:
        now += timedelta(seconds=50)
        rollout = transitions.step(
            rollout, made, Seen(stable=stable, candidate=RevisionSeen(phases=(phase,))), now
        )
    assert rollout.state == STARTING
    for phase in (pb.REPLICA_PHASE_FAILED, *course, pb.REPLICA_PHASE_FAILED, *course):
        now += timedelta(seconds=10)
        rollout = transitions.step(
            rollout, made, Seen(stable=stable, candidate=RevisionSeen(phases=(phase,))), now
        )
    assert rollout.state == ROLLING_BACK


def test_waiting_for_bake_time_is_no_lack_of_progress():
    world = World(spec(10, bake=3600, progress_deadline={"seconds": 60}))
    assert world.run(most_s=8000).state == PROMOTED


def test_missing_data_hold_however_long_and_are_no_lack_of_progress():
    world = World(spec(50, checks=[(QUALITY, "difference", 0.1)], progress_deadline={"seconds": 60}), rps=10)
    world.run(most_s=3000, s=30)
    assert world.rollout.state == HELD
    assert "Too little data on the judged quality" in world.rollout.message
    assert world.rollout.candidate_weight == 50


def test_reported_data_end_a_hold():
    world = World(spec(50, checks=[(QUALITY, "difference", 0.1)]))
    world.run(most_s=200)
    assert world.rollout.state == HELD
    for cursor in range(1, 61):
        world.now += timedelta(seconds=5)
        one = Counts(quality=Sum(18 + world.random.random(), 20))
        other = Counts(quality=Sum(18 + world.random.random(), 20))
        seen = world.seen()
        seen = replace(
            seen,
            stable=replace(seen.stable, reported=one),
            candidate=replace(seen.candidate, reported=other),
            cursor=cursor,
        )
        world.rollout = transitions.step(world.rollout, world.spec, seen, world.now)
        world.apply()
    assert world.rollout.state in {PROMOTING, PROMOTED}
    # Ten reports of each were needed; what came after the end is no evidence any more.
    assert world.rollout.cursor == 12


def test_a_candidate_that_fails_is_rolled_back_and_traffic_returns_at_once():
    world = World(spec(20, 50, checks=[(ERRORS, "difference", 0.02)]), rps=50)
    world.error_rate[2] = 0.5
    world.run(until=ROLLING_BACK)
    assert world.rollout.candidate_weight == 0
    assert [each.weight_percent for each in replacing.targets(world.rollout, world.spec)] == [100, 0]
    # Ten slices of 2.5 s, or rather 3 s, are needed, and the first look is at 10 s.
    assert world.elapsed < 60
    world.run()
    assert world.rollout.state == ROLLED_BACK
    assert "shown to break the limit" in world.rollout.message
    assert world.rollout.analysis.verdict == pb.ROLLOUT_VERDICT_FAIL


def test_a_slow_candidate_is_rolled_back():
    world = World(spec(50, checks=[(LATENCY, "relative", 0.2)]), rps=50)
    world.latency_ms[2] = 600
    assert world.run().state == ROLLED_BACK
    assert "p95 latency" in world.rollout.message


def test_a_candidate_like_the_stable_revision_is_promoted():
    world = World(spec(20, 50, checks=[(ERRORS, "difference", 0.02), (LATENCY, "relative", 0.2)]), rps=50)
    world.error_rate.update({1: 0.01, 2: 0.01})
    assert world.run().state == PROMOTED
    assert world.rollout.analysis.verdict == pb.ROLLOUT_VERDICT_PASS


def test_a_fix_gets_through_when_the_stable_revision_is_broken():
    world = World(spec(10, 50, checks=[(ERRORS, "relative", 0.1), (ERRORS, "absolute", 0.05)]), rps=20)
    world.broken = {1}
    world.error_rate[2] = 0.005
    world.run()
    assert world.rollout.state == PROMOTED
    # Nobody is sent to a revision that serves nothing.
    assert weights(world) == [0, 100]
    relative, absolute = world.rollout.analysis.checks
    assert "not compared" in relative.message
    assert (absolute.verdict, absolute.candidate_requests > 100) == (pb.ROLLOUT_VERDICT_PASS, True)


def test_a_fix_that_is_none_does_not_get_through():
    world = World(spec(10, 50, checks=[(ERRORS, "relative", 0.1), (ERRORS, "absolute", 0.05)]), rps=20)
    world.broken = {1}
    world.error_rate[2] = 0.5
    assert world.run().state == ROLLED_BACK


def test_thresholds_speak_when_there_is_no_baseline_but_not_that_of_throughput():
    for kind, expected in [
        (pb.THRESHOLD_KIND_LATENCY, ROLLED_BACK),
        (pb.THRESHOLD_KIND_THROUGHPUT, PROMOTED),
    ]:
        world = World(spec(10, checks=[(ERRORS, "relative", 0.1)]), rps=20)
        world.broken = {1}
        world.breaches = {2: {kind: "p95 latency of 3000 ms, not at most 2000 ms"}}
        assert world.run().state == expected


def test_with_a_baseline_and_an_analysis_thresholds_say_nothing():
    world = World(spec(50, checks=[(ERRORS, "difference", 0.1)]), rps=20)
    world.breaches = {2: {pb.THRESHOLD_KIND_LATENCY: "slow"}}
    assert world.run().state == PROMOTED


def test_without_an_analysis_a_threshold_that_the_stable_revision_keeps_rolls_back():
    world = World(spec(50))
    world.breaches = {2: {pb.THRESHOLD_KIND_LATENCY: "slow"}}
    assert world.run().state == ROLLED_BACK
    assert "breaks a threshold: slow" in world.rollout.message
    world = World(spec(50))
    world.breaches = {each: {pb.THRESHOLD_KIND_LATENCY: "slow"} for each in (1, 2)}
    assert world.run().state == PROMOTED


def test_a_short_fall_of_the_stable_revision_lets_nothing_through_uncompared():
    world = World(spec(50, bake=60, checks=[(ERRORS, "difference", 0.01)]), rps=20)
    world.error_rate[2] = 0.2
    world.run(until=BAKING)
    # It falls before enough was seen to roll back, and until after the end of the bake time.
    world.tick(20)
    world.broken, world.phase_when_broken = {1}, LOADING
    for _ in range(50):
        world.tick()
    assert world.rollout.state == HELD
    assert "no ready replica at the moment" in world.rollout.message
    assert world.rollout.candidate_weight == 100
    world.broken = set()
    world.tick()
    assert world.rollout.candidate_weight == 50
    assert world.run().state == ROLLED_BACK


def test_a_candidate_without_a_ready_replica_loses_its_traffic_until_it_has_one():
    world = World(spec(50, bake=60))
    world.run(until=BAKING)
    world.broken, world.phase_when_broken = {2}, LOADING
    world.tick()
    assert (world.rollout.state, world.rollout.candidate_weight, world.rollout.step_start) == (
        BAKING,
        0,
        None,
    )
    world.broken = set()
    world.tick()
    assert world.rollout.candidate_weight == 50
    assert world.rollout.step_start == world.now


def test_a_rollback_that_is_asked_for_returns_traffic_at_once_also_to_a_broken_revision():
    for broken in (set(), {1}):
        world = World(spec(50, bake=1000))
        world.run(until=BAKING)
        world.broken = broken
        world.tick()
        world.rollout = transitions.aimed(world.rollout, 1, 1, world.spec, 0, world.now)
        assert (world.rollout.state, world.rollout.candidate_weight) == (ROLLING_BACK, 0)
        assert world.run().state == ROLLED_BACK


def test_a_rollback_works_while_the_candidate_takes_over():
    world = World(spec(replicas=3))
    world.run(until=PROMOTING)
    world.rollout = transitions.rolled_back(world.rollout, "Requested.")
    world.tick()
    assert (world.rollout.stable_replicas, world.rollout.candidate_replicas) == (3, 0)
    assert world.run().state == ROLLED_BACK


def test_another_version_replaces_the_candidate_and_its_replicas_make_room():
    world = World(spec(50, bake=600, replicas=1))
    world.run(until=BAKING)
    world.drain_s = 30
    world.rollout = transitions.aimed(world.rollout, 1, 3, world.spec, 0, world.now)
    assert (world.rollout.stable, world.rollout.candidate, world.rollout.state) == (1, 3, STARTING)
    for _ in range(20):
        world.tick()
        assert world.rollout.candidate_replicas == 0 or world.seen().others == 0
    world.run(most_s=2000)
    assert world.rollout.state == PROMOTED
    assert world.rollout.candidate == 3


def test_another_version_replaces_the_candidate_also_when_the_stable_revision_is_broken():
    world = World(spec(50, bake=600))
    world.broken = {1}
    world.run(until=BAKING)
    world.rollout = transitions.aimed(world.rollout, 1, 3, world.spec, 0, world.now)
    assert world.run().state == PROMOTED


def test_what_has_taken_over_is_what_the_next_version_is_compared_with():
    world = World(spec(replicas=1))
    world.drain_s = 100
    world.run(until=PROMOTING)
    world.tick()
    assert world.rollout.has_taken_over
    following = transitions.aimed(world.rollout, 1, 3, world.spec, 0, world.now)
    assert (following.stable, following.candidate) == (2, 3)


def test_a_candidate_that_was_rolled_back_is_not_tried_again_by_itself():
    world = World(spec(10))
    world.broken = {2}
    world.run()
    assert transitions.aimed(world.rollout, 1, 2, world.spec, 0, world.now) is world.rollout
    assert transitions.aimed(world.rollout, 1, 1, world.spec, 0, world.now) is world.rollout
    assert transitions.aimed(world.rollout, 1, 3, world.spec, 0, world.now).candidate == 3
    assert transitions.aimed(None, 1, 1, world.spec, 0, world.now) is None


def test_a_change_of_scale_reaches_a_rollout_under_way():
    world = World(spec(50, bake=100, replicas=1))
    world.run(until=BAKING)
    world.spec.replicas = 4
    world.tick()
    assert (world.rollout.stable_replicas, world.rollout.candidate_replicas) == (4, 2)
    assert world.run().state == PROMOTED
    assert replacing.targets(world.rollout, world.spec)[0].replicas == 4


@pytest.mark.parametrize("weights_after", [(), (90,)])
def test_a_policy_that_lost_steps_does_not_stop_the_rollout(weights_after):
    world = World(spec(10, 20, 50, bake=100))
    world.run(until=BAKING)
    for _ in range(150):
        world.tick()
    assert world.rollout.step == 2
    world.spec = spec(*weights_after)
    assert world.run().state == PROMOTED


def scaled(least, most, **policy):
    made = spec(25, 50, **policy)
    made.autoscaling.CopyFrom(pb.Autoscaling(min_replicas=least, max_replicas=most, target_concurrency=2))
    return made


def test_each_revision_is_scaled_within_bounds_of_its_own():
    made = scaled(2, 12)
    world = World(made, serving=4)
    world.replicas[1] = [NOW] * 4
    world.run(until=BAKING)
    stable, candidate = replacing.targets(world.rollout, made)
    # 25 % of the 4 that served and of the 12 at most; the stable one keeps its own bounds.
    assert (candidate.autoscaling.min_replicas, candidate.autoscaling.max_replicas) == (1, 3)
    assert (stable.autoscaling.min_replicas, stable.autoscaling.max_replicas) == (2, 12)
    assert made.autoscaling.max_replicas == 12
    back = transitions.step(transitions.rolled_back(world.rollout, "x"), made, world.seen(), world.now)
    stable, candidate = replacing.targets(back, made)
    assert (stable.autoscaling.min_replicas, candidate.replicas) == (4, 0)
    world.run()
    (target,) = replacing.targets(world.rollout, made)
    assert (target.autoscaling.min_replicas, target.autoscaling.max_replicas) == (2, 12)


def test_nothing_idles_away_in_a_rollout():
    made = scaled(0, 4)
    made.autoscaling.idle_timeout.seconds = 60
    world = World(made, serving=0)
    world.run(until=BAKING)
    for target in replacing.targets(world.rollout, made):
        assert target.autoscaling.min_replicas == 1
        assert not target.autoscaling.HasField("idle_timeout")


def test_the_status_tells_where_it_stands():
    world = World(spec(10, 50, bake=60))
    world.run(until=BAKING)
    status = messages.from_rollout(world.rollout, world.spec)
    assert (status.step, status.total_steps, status.candidate_weight_percent) == (1, 2, 10)
    assert status.bake_end_time.ToDatetime() - status.start_time.ToDatetime() == timedelta(
        seconds=1 + 10 + 60
    )
    assert status.message == "Step 1 of 2 bakes with 10 % of the traffic."
    assert not status.HasField("end_time")
    world.run()
    status = messages.from_rollout(world.rollout, world.spec)
    assert status.end_time.ToDatetime() == world.now.replace(tzinfo=None)
    assert not status.HasField("bake_end_time")


phases = st.sampled_from([READY, LOADING, CRASH_LOOP, pb.REPLICA_PHASE_SCHEDULING, pb.REPLICA_PHASE_DRAINING])
revisions = st.lists(phases, max_size=6).map(lambda found: RevisionSeen(phases=tuple(found)))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 5),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([(), (10,), (20, 100)]),
    st.sampled_from([0, pb.REPLACEMENT_MODE_SURGE, RECREATE, SWAP]),
    st.integers(0, 1),
    st.lists(st.tuples(revisions, revisions, st.integers(0, 2), st.integers(0, 400)), max_size=30),
)
def test_whatever_is_seen_the_wish_is_sound(size, surge, unavailable, canary, mode, stable, course):
    made = spec(*canary, replicas=size, max_surge=surge, max_unavailable=unavailable)
    rollout, now = transitions.begin(stable, 2, made, mode, NOW), NOW
    for stable_seen, candidate_seen, others, pause in course:
        now += timedelta(seconds=pause)
        seen = Seen(stable=stable_seen if stable else RevisionSeen(), candidate=candidate_seen, others=others)
        after = transitions.step(rollout, made, seen, now)
        assert transitions.step(rollout, made, seen, now) == after
        if rollout.is_over:
            assert after == rollout
        rollout = after
        targets = replacing.targets(rollout, made)
        assert sum(each.weight_percent for each in targets) in {0, 100}
        assert all(each.replicas >= 0 for each in targets)
        peak = replacing.peak_replicas(made, rollout.replacement, size)
        if rollout.replacement != SWAP:
            assert sum(each.replicas for each in targets) <= max(peak, size)
        if rollout.state in {ROLLING_BACK, ROLLED_BACK}:
            assert (targets[0].revision, targets[0].weight_percent) == (1, 100)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([(), (10,), (20, 100)]),
    st.sampled_from([pb.REPLACEMENT_MODE_SURGE, RECREATE]),
    st.booleans(),
    st.integers(0, 40),
)
def test_every_rollout_ends_in_a_world_that_does_as_told(
    size, surge, unavailable, canary, mode, is_stable_broken, drain_s
):
    if not surge and not unavailable:
        unavailable = 1
    made = spec(*canary, replicas=size, max_surge=surge, max_unavailable=unavailable, bake=5)
    world = World(made, mode=mode)
    world.drain_s = drain_s
    world.broken = {1} if is_stable_broken else set()
    world.run(most_s=3000)
    assert world.rollout.state == PROMOTED
    assert replacing.targets(world.rollout, made)[0].replicas == size
