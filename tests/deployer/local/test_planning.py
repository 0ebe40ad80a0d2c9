"""What a plan says, against a real backend whose machine is as small as the test wants it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deployer.local.worlds import GIB, NAME, World, big_machine, revision, servers, wanted, world
from neuroweaver.cluster.errors import BackendError
from neuroweaver.deployer.domain.backend import BackendPlan, DesiredState, FieldChange
from neuroweaver.v1 import deployer_pb2 as pb

SWITCHED = pb.EngineOptions(adapter_mode=pb.ADAPTER_MODE_SWITCHED)
BATCH = pb.EngineOptions(max_batch_size=4)
SURGE, RECREATE = pb.REPLACEMENT_MODE_SURGE, pb.REPLACEMENT_MODE_RECREATE
CREATE, UNCHANGED, DELETE, UPDATE = (
    pb.PLANNED_ACTION_CREATE,
    pb.PLANNED_ACTION_UNCHANGED,
    pb.PLANNED_ACTION_DELETE,
    pb.PLANNED_ACTION_UPDATE,
)


def actions(plan: BackendPlan) -> list[tuple[str, int]]:
    return [(each.name.removeprefix(f"{NAME}-"), each.action) for each in plan.objects]


def blocking(plan: BackendPlan) -> list[str]:
    return [each.reason for each in plan.findings if each.is_blocking]


async def after(here: World, first: DesiredState, then: DesiredState) -> BackendPlan:
    await here.serve(first)
    return await here.backend.plan(then)


async def test_a_first_plan_creates_and_changes_nothing(tmp_path: Path):
    async with world(tmp_path, big_machine(cores=4, memory_bytes=8 * GIB)) as here:
        plan = await here.backend.plan(wanted(revision(here.registry.bundle(), replicas=2)))
        assert actions(plan) == [("1", CREATE), ("2", CREATE)]
        assert (plan.replacement, plan.has_downtime, plan.findings) == (SURGE, False, ())
        shown = yaml.safe_load(plan.objects[0].manifest)
        assert (shown["apiVersion"], shown["kind"]) == ("local/v1", "Process")
        assert shown["spec"]["engine"]["model"] == "advisor@1.0.0"
        cpu, memory = plan.capacity
        assert (cpu.required, cpu.peak_required, cpu.available, cpu.is_sufficient) == ("2", "2", "4", True)
        assert (memory.required, memory.available) == ("2048Mi", "8192Mi")
        assert servers(tmp_path) == []
        assert not (tmp_path / "deployments" / NAME).exists()


async def test_the_same_wish_is_unchanged(tmp_path: Path):
    async with world(tmp_path) as here:
        desired = wanted(revision(here.registry.bundle(), replicas=2))
        assert actions(await after(here, desired, desired)) == [("1", UNCHANGED), ("2", UNCHANGED)]


async def test_with_room_a_new_version_surges(tmp_path: Path):
    async with world(tmp_path, big_machine(cores=3)) as here:
        first = wanted(revision(here.registry.bundle("1.0.0"), replicas=2))
        then = wanted(revision(here.registry.bundle("2.0.0"), 2, replicas=2))
        plan = await after(here, first, then)
        assert actions(plan) == [("3", CREATE), ("4", CREATE), ("1", DELETE), ("2", DELETE)]
        assert plan.replacement == SURGE
        assert plan.capacity[0].peak_required == "3"
        assert plan.capacity[0].is_sufficient


async def test_without_room_the_server_chooses_to_recreate_and_says_why(tmp_path: Path):
    async with world(tmp_path, big_machine(cores=2)) as here:
        first = wanted(revision(here.registry.bundle("1.0.0"), replicas=2))
        then = wanted(revision(here.registry.bundle("2.0.0"), 2, replicas=2))
        plan = await after(here, first, then)
        assert (plan.replacement, plan.has_downtime) == (RECREATE, True)
        assert plan.replacement_reason == (
            "there is no room beside the old replicas: the surge needs 3 CPU, and 2 are free"
        )
        assert blocking(plan) == []


async def test_a_surge_without_room_is_refused_with_the_way_out(tmp_path: Path):
    async with world(tmp_path, big_machine(memory_bytes=2 * GIB)) as here:
        rollout = pb.RolloutPolicy(replacement=SURGE)
        first = wanted(revision(here.registry.bundle("1.0.0"), replicas=2))
        then = wanted(revision(here.registry.bundle("2.0.0"), 2, replicas=2), rollout=rollout)
        plan = await after(here, first, then)
        assert blocking(plan) == ["SURGE_WOULD_DEADLOCK"]
        (finding,) = plan.findings
        assert finding.field == "rollout.replacement"
        assert "needs 3072Mi of memory, and 2048Mi are free" in finding.message
        assert "replacement RECREATE" in finding.message


async def test_what_may_be_missing_for_a_while_makes_room(tmp_path: Path):
    async with world(tmp_path, big_machine(cores=2)) as here:
        rollout = pb.RolloutPolicy(replacement=SURGE, max_surge=0, max_unavailable=1)
        first = wanted(revision(here.registry.bundle("1.0.0"), replicas=2))
        then = wanted(revision(here.registry.bundle("2.0.0"), 2, replicas=2), rollout=rollout, generation=2)
        assert blocking(await after(here, first, then)) == []
        await here.serve(then)


async def test_a_canary_needs_room_beside_the_stable_revision(tmp_path: Path):
    async with world(tmp_path, big_machine(cores=2)) as here:
        canary = pb.RolloutPolicy(canary=pb.CanaryPolicy(steps=[pb.CanaryStep(weight_percent=10)]))
        stable = revision(here.registry.bundle("1.0.0"), replicas=2)
        candidate = revision(here.registry.bundle("2.0.0"), 2)
        await here.serve(wanted(stable))
        # As the loop asks once the candidate is there, and as it would be in the end.
        for revisions in [(stable, candidate), (candidate,)]:
            plan = await here.backend.plan(wanted(*revisions, rollout=canary))
            assert blocking(plan) == ["SURGE_WOULD_DEADLOCK"]
            assert plan.findings[0].field == "rollout.canary"
            assert plan.capacity[0].peak_required == "3"


async def test_an_adapter_is_swapped_where_nothing_else_changes(tmp_path: Path):
    async with world(tmp_path, big_machine(cores=1)) as here:
        first = wanted(revision(here.registry.bundle("1.0.0", base="smol")), engine=SWITCHED)
        then = wanted(revision(here.registry.bundle("2.0.0", base="smol"), 2), engine=SWITCHED)
        plan = await after(here, first, then)
        assert plan.replacement == pb.REPLACEMENT_MODE_SWAP_ADAPTER
        assert actions(plan) == [("1", UPDATE)]
        changes = plan.objects[0].changes
        assert FieldChange(f"Process/{NAME}-1", "spec.version", '"1.0.0"', '"2.0.0"') in changes
        assert (plan.has_downtime, blocking(plan)) == (False, [])


@pytest.mark.parametrize("base", ["other", "smol"])
async def test_an_adapter_is_not_swapped_where_more_changes(tmp_path: Path, base: str):
    async with world(tmp_path) as here:
        engine = pb.EngineOptions(adapter_mode=pb.ADAPTER_MODE_SWITCHED, max_batch_size=2)
        first = wanted(revision(here.registry.bundle("1.0.0", base="smol")), engine=SWITCHED)
        asked = pb.RolloutPolicy(replacement=pb.REPLACEMENT_MODE_SWAP_ADAPTER)
        then = wanted(
            revision(here.registry.bundle("2.0.0", base=base), 2),
            engine=SWITCHED if base == "other" else engine,
            rollout=asked,
        )
        assert blocking(await after(here, first, then)) == ["SWAP_NOT_POSSIBLE"]


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"resources": pb.ReplicaResources(gpus=1)}, "INSUFFICIENT_GPU", "resources.gpus"),
        ({"resources": pb.ReplicaResources(cpu_request="64500m")}, "INSUFFICIENT_CPU", "resources.cpu_request"),
        ({"resources": pb.ReplicaResources(memory_request="65Gi")}, "INSUFFICIENT_MEMORY", "resources.memory_request"),
        ({"engine": pb.EngineOptions(weight_type=pb.WEIGHT_TYPE_FP16)}, "FP16_NEEDS_GPU", "engine.weight_type"),
        (
            {"autoscaling": pb.Autoscaling(max_replicas=1, custom_metrics=[pb.CustomMetricTarget(name="q")])},
            "CUSTOM_METRICS_UNSUPPORTED",
            "autoscaling.custom_metrics",
        ),
    ],
)  # fmt: skip
async def test_what_this_machine_cannot_do_is_refused(tmp_path, fields, reason, field):
    async with world(tmp_path) as here:
        plan = await here.backend.plan(wanted(revision(here.registry.bundle()), **fields))
        assert [(each.reason, each.field) for each in plan.findings if each.is_blocking] == [(reason, field)]


async def test_a_name_that_is_no_folder_is_refused(tmp_path: Path):
    async with world(tmp_path) as here:
        desired = wanted(revision(here.registry.bundle()))
        for name in ("../x", "blobs", "", "A"):
            bad = DesiredState(desired.key, name, desired.spec, desired.revisions)
            with pytest.raises(BackendError, match="cannot name a deployment"):
                await here.backend.apply(bad)
