"""Deployments that follow an alias of a real Registry."""

from __future__ import annotations

import asyncio

import pytest

from deployer.worlds import KEY, QUICK, beside, deploy, get, move, publish, served, until
from neuroweaver.deployer.control.follower import Follower
from neuroweaver.deployer.control.reconciler import Reconciler
from neuroweaver.deployer.domain.backend import Finding, Key
from neuroweaver.deployer.storage.lease import Lease, LeaseLost
from neuroweaver.v1 import deployer_pb2 as pb
from neuroweaver.v1 import registry_pb2


async def test_a_moved_alias_rolls_out(mesh):
    await served(mesh, versions=("1.0.0", "2.0.0"))
    await mesh.follower.look()
    assert len((await get(mesh)).revisions) == 1

    await move(mesh.registry, "2.0.0")
    await mesh.follower.look()
    seen = await mesh.settle()
    assert (seen.state, seen.stable_revision) == (pb.DEPLOYMENT_STATE_READY, 2)
    assert (seen.revisions[0].version, seen.revisions[0].cause) == ("2.0.0", "ALIAS_MOVED")
    assert (seen.revisions[0].created_by, seen.generation) == ("system", 1)
    assert seen.rollout.state == pb.ROLLOUT_STATE_PROMOTED
    followed = [e.alias_followed for e in await mesh.events() if e.WhichOneof("event") == "alias_followed"]
    assert [(e.from_version, e.to_version) for e in followed] == [("", "1.0.0"), ("1.0.0", "2.0.0")]


async def test_a_move_is_followed_by_itself_and_also_one_that_happened_while_the_deployer_was_down(mesh):
    await publish(mesh.registry, "1.0.0", "2.0.0", "3.0.0")
    await deploy(mesh)

    async def version(wanted):
        seen = await get(mesh)
        stable = next((r.version for r in seen.revisions if r.number == seen.stable_revision), "")
        return stable == wanted

    async def up(wanted):
        reconciler = Reconciler(mesh.store, {pb.DEPLOYMENT_BACKEND_LOCAL: mesh.backend}, pace=QUICK)
        follower = Follower(mesh.store, mesh.planner, mesh.registry, period_s=0.2)
        async with beside(reconciler.lead(), follower.run()):
            await until(lambda: version(wanted[0]))
            for each in wanted[1:]:
                await move(mesh.registry, each)
                await until(lambda each=each: version(each))

    await up(["1.0.0", "2.0.0"])
    await move(mesh.registry, "3.0.0")  # while nothing runs
    await up(["3.0.0"])
    place = mesh.backend.places[KEY]
    assert {each.revision for each in place.replicas.values()} == {3}


async def test_the_registrys_word_comes_before_the_timer(lone):
    await publish(lone.registry, "1.0.0", "2.0.0")
    await deploy(lone)
    slow = Follower(lone.store, lone.planner, lone.registry, period_s=3600.0)

    async def moved():
        return len((await get(lone)).revisions) == 2

    async with beside(slow.run()):
        await until(lambda: asyncio.sleep(0, slow._sequence > 0))
        await move(lone.registry, "2.0.0")
        await until(moved)


async def test_a_version_that_was_rolled_back_is_not_tried_again_until_the_alias_moves(lone):
    await publish(lone.registry, "1.0.0", "2.0.0", "2.0.1")
    lone.backend.broken = {"2.0.0"}
    await deploy(lone)
    await lone.settle()
    await move(lone.registry, "2.0.0")
    for _ in range(3):
        await lone.follower.look()
        seen = await lone.settle()
    assert seen.rollout.state == pb.ROLLOUT_STATE_ROLLED_BACK
    assert (seen.stable_revision, seen.state, len(seen.revisions)) == (1, pb.DEPLOYMENT_STATE_READY, 2)
    assert "no such layer" in seen.rollout.message
    await move(lone.registry, "2.0.1")
    await lone.follower.look()
    seen = await lone.settle()
    assert (seen.stable_revision, seen.revisions[0].version) == (3, "2.0.1")


async def test_an_alias_that_is_gone_or_leads_to_nothing_is_a_condition(lone):
    ready = await served(lone)
    await lone.follower.look()
    await lone.registry.DeleteAlias(registry_pb2.DeleteAliasRequest(model_id="advisor", alias="production"))
    await lone.follower.look()
    seen = await lone.settle()
    condition = next(each for each in seen.conditions if each.type == "ALIAS_RESOLVED")
    assert (condition.is_true, condition.reason) == (False, "ALIAS_MISSING")
    assert (seen.state, seen.stable_revision) == (ready.state, 1)
    count = len(await lone.events())
    await lone.follower.look()
    assert len(await lone.events()) == count

    await publish(lone.registry, "1.1.0")
    await lone.follower.look()
    seen = await lone.settle()
    condition = next(each for each in seen.conditions if each.type == "ALIAS_RESOLVED")
    assert (condition.is_true, seen.stable_revision) == (True, 2)


async def test_corrupt_files_behind_a_moved_alias_change_nothing(lone):
    await served(lone)
    before = set((lone.folder / "artifacts").rglob("*"))
    await publish(lone.registry, "2.0.0")
    for file in set((lone.folder / "artifacts").rglob("*")) - before:
        if file.is_file():
            file.chmod(0o600)
            file.write_bytes(b"x" * file.stat().st_size)
    await lone.follower.look()
    seen = await lone.settle()
    condition = next(each for each in seen.conditions if each.type == "ALIAS_RESOLVED")
    assert condition.reason == "ARTIFACT_CORRUPT"
    assert (seen.stable_revision, len(seen.revisions)) == (1, 1)


async def test_what_cannot_be_rolled_out_is_planned_less_and_less_often(lone):
    await served(lone, versions=("1.0.0", "2.0.0", "3.0.0"))
    lone.backend.findings = (Finding("INSUFFICIENT_GPU", "No GPU is free.", is_blocking=True),)
    now = 0.0
    follower = Follower(lone.store, lone.planner, lone.registry, period_s=5.0, clock=lambda: now)

    async def planned() -> int:
        lone.backend.calls.clear()
        await follower.look()
        return lone.backend.calls.count("plan")

    await move(lone.registry, "2.0.0")
    tried = []
    for now in range(0, 300, 5):
        if await planned():
            tried.append(now)
    assert tried == [0, 10, 30, 70, 130, 190, 250]
    # Another version or another spec may fit.
    await move(lone.registry, "3.0.0")
    assert (await planned(), await planned()) == (1, 0)
    thresholds = pb.ModelThresholds(min_accuracy=0.5)
    await lone.deployer.SetThresholds(pb.SetThresholdsRequest(model_id="advisor", thresholds=thresholds))
    assert (await planned(), await planned()) == (1, 0)
    lone.backend.findings = ()
    now += 10
    assert await planned() == 1
    assert (await get(lone)).revisions[0].version == "3.0.0"


async def test_a_plan_that_hangs_is_given_up_and_holds_up_no_other(lone):
    for model_id in ("advisor", "buyer"):
        await publish(lone.registry, "1.0.0", "2.0.0", model_id=model_id)
        await deploy(lone, model_id=model_id)
        await lone.settle(Key("default", model_id, "default"))
        await move(lone.registry, "2.0.0", model_id=model_id)
    plan = lone.backend.plan

    async def hanging(wanted):
        if wanted.key == KEY:
            await asyncio.Event().wait()
        return await plan(wanted)

    lone.backend.plan = hanging

    async def moved() -> bool:
        return (await get(lone, "buyer")).revisions[0].version == "2.0.0"

    patient = Follower(lone.store, lone.planner, lone.registry, plan_s=3600.0)
    async with beside(patient.look()) as (looking,):
        await until(moved)
        assert not looking.done()
    impatient = Follower(lone.store, lone.planner, lone.registry, plan_s=0.01)
    await asyncio.wait_for(impatient.look(), 120)


async def test_a_lost_lease_ends_the_following(lone):
    await served(lone, versions=("1.0.0", "2.0.0"))
    await move(lone.registry, "2.0.0")
    with pytest.raises(LeaseLost):
        await lone.follower.look(Lease(token=7))
    assert len((await get(lone)).revisions) == 1


async def test_a_rollback_stops_following(lone):
    await served(lone, versions=("1.0.0", "2.0.0", "3.0.0"))
    await move(lone.registry, "2.0.0")
    await lone.follower.look()
    await lone.settle()
    back = await lone.deployer.RollbackDeployment(pb.RollbackDeploymentRequest(model_id="advisor"))
    assert (back.spec.version, back.revisions[0].cause) == ("1.0.0", "ROLLBACK")
    seen = await lone.settle()
    assert (seen.stable_revision, seen.revisions[0].version) == (3, "1.0.0")
    await move(lone.registry, "3.0.0")
    await lone.follower.look()
    assert len((await lone.settle()).revisions) == 3
    await deploy(lone)
    assert (await lone.settle()).revisions[0].version == "3.0.0"
