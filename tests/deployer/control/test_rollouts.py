"""Rollouts through the whole Deployer: the rules themselves are tested beside them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from deployer.fakes import unreachable
from deployer.worlds import KEY, deploy, get, publish, refusal, served, until
from neuroweaver.deployer.domain.backend import Finding, Measured, Replica
from neuroweaver.mesh.wire import status
from neuroweaver.v1 import deployer_pb2 as pb


def canary(version: str, **fields) -> pb.DeploymentSpec:
    """One step with a tenth of the traffic and no time to bake."""
    steps = [pb.CanaryStep(weight_percent=10, bake_time={"seconds": 0})]
    policy = pb.RolloutPolicy(canary=pb.CanaryPolicy(steps=steps, **fields))
    return pb.DeploymentSpec(version=version, replicas=2, rollout=policy)


def baking(version: str) -> pb.DeploymentSpec:
    spec = canary(version)
    spec.rollout.canary.steps[0].bake_time.FromTimedelta(timedelta(days=1))
    return spec


async def started(mesh) -> None:
    await served(mesh, pb.DeploymentSpec(version="1.0.0", replicas=2), versions=("1.0.0", "2.0.0", "3.0.0"))


def weights(mesh) -> dict[int, int]:
    return {each.number: each.weight_percent for each in mesh.backend.places[KEY].wanted.revisions}


async def test_a_canary_gets_its_share_and_then_everything(mesh):
    await started(mesh)
    await deploy(mesh, canary("2.0.0"))
    seen, shares = await get(mesh), []
    for _ in range(40):
        await mesh.reconciler.look(KEY)
        shares.append(weights(mesh))
        assert sum(shares[-1].values()) == 100
        seen = await get(mesh)
        if seen.rollout.state == pb.ROLLOUT_STATE_PROMOTED:
            break
    assert {1: 90, 2: 10} in shares
    assert (seen.stable_revision, seen.rollout.total_steps) == (2, 1)
    settled = await mesh.settle()
    assert (settled.state, settled.replicas.current) == (pb.DEPLOYMENT_STATE_READY, 2)
    assert settled.revisions[0].is_proven
    states = [e.rollout.state for e in await mesh.events() if e.WhichOneof("event") == "rollout"]
    assert states[0] == pb.ROLLOUT_STATE_STARTING
    assert states[-1] == pb.ROLLOUT_STATE_PROMOTED
    assert pb.ROLLOUT_STATE_BAKING in states


async def test_a_broken_candidate_is_rolled_back_and_traffic_never_leaves_stable(mesh):
    await started(mesh)
    mesh.backend.broken = {"2.0.0"}
    await deploy(mesh, canary("2.0.0"))
    for _ in range(10):
        await mesh.reconciler.look(KEY)
        assert weights(mesh)[1] == 100
    seen = await mesh.settle()
    assert seen.rollout.state == pb.ROLLOUT_STATE_ROLLED_BACK
    assert (seen.state, seen.stable_revision, seen.replicas.current) == (pb.DEPLOYMENT_STATE_READY, 1, 2)
    assert "no such layer" in seen.rollout.message
    # Asked for again, it is tried again.
    mesh.backend.broken = set()
    await deploy(mesh, canary("2.0.0"))
    assert (await mesh.settle()).stable_revision == 3


async def test_a_broken_stable_revision_does_not_block_the_fix(lone):
    await started(lone)
    lone.backend.broken = {"1.0.0"}
    lone.backend.set_phase(KEY, pb.REPLICA_PHASE_CRASH_LOOP)
    assert (await lone.settle()).state == pb.DEPLOYMENT_STATE_FAILED
    await deploy(lone, canary("2.0.0"))
    seen = await lone.settle()
    assert (seen.state, seen.stable_revision) == (pb.DEPLOYMENT_STATE_READY, 2)


async def test_another_deploy_replaces_the_candidate(lone):
    await started(lone)
    await deploy(lone, baking("2.0.0"))
    seen = await lone.settle()
    assert (seen.rollout.state, seen.rollout.candidate_revision) == (pb.ROLLOUT_STATE_BAKING, 2)
    assert seen.rollout.HasField("bake_end_time")
    await deploy(lone, baking("3.0.0"))
    seen = await lone.settle()
    assert (seen.rollout.stable_revision, seen.rollout.candidate_revision) == (1, 3)
    assert set(weights(lone)) == {1, 3}


async def test_a_rollback_in_a_rollout_gives_all_traffic_back_at_once(mesh):
    await started(mesh)
    await deploy(mesh, baking("2.0.0"))
    await mesh.settle()
    assert weights(mesh) == {1: 90, 2: 10}
    back = await mesh.deployer.RollbackDeployment(
        pb.RollbackDeploymentRequest(model_id="advisor", reason="looks bad")
    )
    assert (back.spec.version, len(back.revisions)) == ("1.0.0", 2)
    await mesh.reconciler.look(KEY)
    await mesh.reconciler.look(KEY)
    assert weights(mesh)[1] == 100
    seen = await mesh.settle()
    assert (seen.rollout.state, seen.stable_revision) == (pb.ROLLOUT_STATE_ROLLED_BACK, 1)
    assert {each.revision for each in seen.replica_statuses} == {1}


async def test_a_rollback_that_meets_an_automatic_one_goes_no_further_back(mesh):
    await started(mesh)
    await deploy(mesh, pb.DeploymentSpec(version="2.0.0", replicas=2))
    await mesh.settle()
    mesh.backend.broken = {"3.0.0"}
    await deploy(mesh, baking("3.0.0"))

    async def is_returning():
        await mesh.reconciler.look(KEY)
        return (await get(mesh)).rollout.state == pb.ROLLOUT_STATE_ROLLING_BACK

    await until(is_returning)
    back = await mesh.deployer.RollbackDeployment(pb.RollbackDeploymentRequest(model_id="advisor"))
    assert (back.spec.version, len(back.revisions)) == ("2.0.0", 3)
    seen = await mesh.settle()
    assert (seen.rollout.state, seen.stable_revision) == (pb.ROLLOUT_STATE_ROLLED_BACK, 2)


async def test_a_rollback_goes_to_the_last_proven_revision_or_to_one_that_is_named(mesh):
    await started(mesh)
    for version in ("2.0.0", "3.0.0"):
        await deploy(mesh, pb.DeploymentSpec(version=version, replicas=2))
        await mesh.settle()
    rollback = mesh.deployer.RollbackDeployment
    await rollback(pb.RollbackDeploymentRequest(model_id="advisor"))
    seen = await mesh.settle()
    assert (seen.revisions[0].version, seen.stable_revision) == ("2.0.0", 4)
    await rollback(pb.RollbackDeploymentRequest(model_id="advisor", revision=1))
    seen = await mesh.settle()
    assert (seen.revisions[0].version, seen.stable_revision) == ("1.0.0", 5)
    refused = await refusal(rollback(pb.RollbackDeploymentRequest(model_id="advisor", revision=99)))
    assert refused.code().name == "NOT_FOUND"
    refused = await refusal(rollback(pb.RollbackDeploymentRequest(model_id="advisor", revision=5)))
    assert status.reason(refused) == "NOTHING_TO_ROLL_BACK"


async def test_a_rollback_takes_the_way_that_there_is_room_for(lone):
    await started(lone)
    await deploy(lone, pb.DeploymentSpec(version="2.0.0", replicas=2))
    await lone.settle()
    lone.backend.replacement = pb.REPLACEMENT_MODE_RECREATE
    await lone.deployer.RollbackDeployment(pb.RollbackDeploymentRequest(model_id="advisor"))
    for _ in range(20):
        await lone.reconciler.look(KEY)
        assert len({each.revision for each in lone.backend.places[KEY].replicas.values()}) <= 1
    seen = await lone.settle()
    assert (seen.stable_revision, seen.rollout.replacement) == (3, pb.REPLACEMENT_MODE_RECREATE)


async def test_a_rollback_that_is_planned_to_find_no_room_is_made_all_the_same_and_says_so(lone):
    await started(lone)
    await deploy(lone, pb.DeploymentSpec(version="2.0.0", replicas=2))
    await lone.settle()
    lone.backend.findings = (Finding("INSUFFICIENT_GPU", "No GPU is free.", is_blocking=True),)
    back = await lone.deployer.RollbackDeployment(pb.RollbackDeploymentRequest(model_id="advisor"))
    scheduled = next(each for each in back.conditions if each.type == "SCHEDULED")
    assert (scheduled.is_true, scheduled.reason) == (False, "INSUFFICIENT_GPU")
    assert (await lone.settle()).stable_revision == 3


async def test_a_rollback_that_cannot_be_planned_is_made_all_the_same(lone):
    await started(lone)
    await deploy(lone, pb.DeploymentSpec(version="2.0.0", replicas=2))
    await lone.settle()
    planned = []

    def fail(_number, name):
        if name == "plan":
            planned.append(name)
            raise unreachable()

    lone.backend.fail = fail
    await lone.deployer.RollbackDeployment(pb.RollbackDeploymentRequest(model_id="advisor"))
    assert planned
    assert (await lone.settle()).stable_revision == 3


async def test_there_is_no_way_back_from_the_first_revision(lone):
    await served(lone)
    call = lone.deployer.RollbackDeployment(pb.RollbackDeploymentRequest(model_id="advisor"))
    assert status.reason(await refusal(call)) == "NOTHING_TO_ROLL_BACK"


async def test_at_most_twenty_revisions_are_kept_and_the_stable_one_always(lone):
    versions = [f"1.0.{number}" for number in range(25)]
    await publish(lone.registry, *versions)
    await deploy(lone, pb.DeploymentSpec(version=versions[0]))
    await lone.settle()
    for version in versions[1:]:
        await deploy(lone, baking(version))
    seen = await lone.settle()
    assert seen.stable_revision == 1
    numbers = [each.number for each in seen.revisions]
    assert numbers == [*range(25, 5, -1), 1]


async def test_recreating_never_has_both_revisions_at_once(lone):
    await started(lone)
    spec = pb.DeploymentSpec(
        version="2.0.0", replicas=2, rollout=pb.RolloutPolicy(replacement=pb.REPLACEMENT_MODE_RECREATE)
    )
    await deploy(lone, spec)
    for _ in range(20):
        await lone.reconciler.look(KEY)
        assert len({each.revision for each in lone.backend.places[KEY].replicas.values()}) <= 1
    assert (await lone.settle()).stable_revision == 2


async def test_surging_keeps_to_its_bounds(lone):
    await served(lone, pb.DeploymentSpec(version="1.0.0", replicas=3), versions=("1.0.0", "2.0.0"))
    lone.backend.is_quick = False
    await deploy(lone, pb.DeploymentSpec(version="2.0.0", replicas=3))
    for _ in range(60):
        await lone.reconciler.look(KEY)
        replicas = lone.backend.places[KEY].replicas.values()
        assert len(replicas) <= 4
        assert sum(each.phase == pb.REPLICA_PHASE_READY for each in replicas) >= 3
    assert (await lone.settle()).stable_revision == 2


def leave_behind(mesh, phase: int, revision: int = 1) -> None:
    """A replica that the backend tells of for ever, whatever is wished."""
    observe = mesh.backend.observe

    async def observing(*arguments):
        seen = await observe(*arguments)
        return replace(seen, replicas=(*seen.replicas, Replica("left-behind", revision, phase)))

    mesh.backend.observe = observing


async def test_a_replica_that_drains_for_ever_holds_up_a_rollout_no_longer_than_it_may_drain(lone):
    await started(lone)
    clock = Clock(lone)
    leave_behind(lone, pb.REPLICA_PHASE_DRAINING)
    await deploy(lone, pb.DeploymentSpec(version="2.0.0", replicas=2))
    waiting = await lone.settle()
    assert (waiting.stable_revision, waiting.rollout.state) == (1, pb.ROLLOUT_STATE_STARTING)
    clock.advance(30 + 59)
    assert (await lone.settle()).stable_revision == 1
    clock.advance(2)
    seen = await lone.settle()
    assert (seen.stable_revision, seen.rollout.state) == (2, pb.ROLLOUT_STATE_PROMOTED)


async def test_a_candidates_replica_that_drains_for_ever_does_not_hold_up_the_way_back(lone):
    await started(lone)
    clock = Clock(lone)
    leave_behind(lone, pb.REPLICA_PHASE_DRAINING, revision=2)
    lone.backend.broken = {"2.0.0"}
    await deploy(lone, canary("2.0.0"))
    assert (await lone.settle()).rollout.state == pb.ROLLOUT_STATE_ROLLING_BACK
    clock.advance(91)
    assert (await lone.settle()).rollout.state == pb.ROLLOUT_STATE_ROLLED_BACK


async def test_a_replica_that_is_gone_but_still_told_of_takes_no_room(lone):
    await started(lone)
    leave_behind(lone, pb.REPLICA_PHASE_GONE)
    await deploy(lone, pb.DeploymentSpec(version="2.0.0", replicas=2))
    assert (await lone.settle()).stable_revision == 2


async def test_a_candidate_that_is_shown_to_be_slower_is_rolled_back(lone):
    """By what its replicas count, against the stable revision over the same time."""
    await started(lone)
    check = pb.CanaryCheck(metric=pb.ROLLOUT_METRIC_ERROR_RATE, absolute=0.01)
    spec = canary("2.0.0", analysis=pb.CanaryAnalysis(checks=[check], interval={"seconds": 5}))
    await deploy(lone, spec)
    clock = Clock(lone)
    for number in range(1, 400):
        clock.advance(1.0)
        lone.backend.counts = {
            1: Measured(1, requests=100 * number, latency_ms={100.0: 100 * number}),
            2: Measured(2, requests=20 * number, errors=10 * number, latency_ms={100.0: 20 * number}),
        }
        await lone.reconciler.look(KEY)
        if (await get(lone)).rollout.state == pb.ROLLOUT_STATE_ROLLED_BACK:
            break
    seen = await get(lone)
    assert seen.rollout.state == pb.ROLLOUT_STATE_ROLLED_BACK
    assert seen.rollout.analysis.verdict == pb.ROLLOUT_VERDICT_FAIL
    assert seen.stable_revision == 1


async def test_missing_data_hold_a_canary(lone):
    await started(lone)
    check = pb.CanaryCheck(metric=pb.ROLLOUT_METRIC_ERROR_RATE, absolute=0.01)
    await deploy(lone, canary("2.0.0", analysis=pb.CanaryAnalysis(checks=[check])))
    clock = Clock(lone)
    for _ in range(60):
        clock.advance(10.0)
        await lone.reconciler.look(KEY)
    seen = await get(lone)
    assert seen.rollout.state == pb.ROLLOUT_STATE_HELD
    assert weights(lone) == {1: 90, 2: 10}


async def test_a_canary_that_bakes_while_the_clock_runs_ahead_for_ten_years_ends_all_the_same(lone):
    await started(lone)
    clock, years = Clock(lone), timedelta(days=3653).total_seconds()
    clock.advance(years)
    await deploy(lone, baking("2.0.0"))
    assert (await lone.settle()).rollout.state == pb.ROLLOUT_STATE_BAKING
    clock.advance(-years)
    assert (await lone.settle()).rollout.state == pb.ROLLOUT_STATE_BAKING
    clock.advance(timedelta(hours=25).total_seconds())
    assert (await lone.settle()).stable_revision == 2


class Clock:
    """The store's time, moved by hand."""

    def __init__(self, mesh) -> None:
        self._mesh = mesh
        self._now = mesh.store.clock()
        mesh.store.clock = lambda: self._now

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
