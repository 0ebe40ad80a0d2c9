"""GPUs of a made-up machine, given to real processes by their environment."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from deployer.local.replicas.test_processes import FAST, pid_of
from deployer.local.worlds import READY, big_machine, revision, wanted, world
from neuroweaver.deployer.local.machine import gpus
from neuroweaver.deployer.local.machine.machine import Need, Room
from neuroweaver.v1 import deployer_pb2 as pb

A, B, C, D = (f"GPU-{letter * 8}-0000-0000-0000-000000000000" for letter in "abcd")
PART = "MIG-11111111-0000-0000-0000-000000000000"


def each_with(number: int) -> pb.ReplicaResources:
    return pb.ReplicaResources(cpu_request="1", memory_request="1Gi", gpus=number)


def seen_by(home: Path, number: int) -> list[str]:
    """What the process of that replica may see."""
    visible = psutil.Process(pid_of(home, number)).environ()["CUDA_VISIBLE_DEVICES"]
    return visible.split(",") if visible else []


async def test_no_two_replicas_see_the_same_gpu(tmp_path: Path):
    async with world(tmp_path, big_machine(gpus=(A, B, C, D))) as here:
        await here.serve(wanted(revision(here.registry.bundle(), replicas=2), resources=each_with(2)))
        assert sorted(seen_by(tmp_path, 1) + seen_by(tmp_path, 2)) == [A, B, C, D]


async def test_a_replica_that_asks_for_none_sees_none(tmp_path: Path):
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1"}
    async with world(tmp_path, big_machine(gpus=("0", "1")), environ=environ) as here:
        await here.serve(wanted(revision(here.registry.bundle())))
        assert seen_by(tmp_path, 1) == []


async def test_a_replica_that_is_started_again_keeps_its_gpu(tmp_path: Path):
    async with world(tmp_path, big_machine(gpus=(A, B))) as here:
        desired = wanted(revision(here.registry.bundle(), replicas=2), resources=each_with(1), recovery=FAST)
        await here.serve(desired)
        before = seen_by(tmp_path, 1), seen_by(tmp_path, 2)
        os.kill(pid_of(tmp_path, 1), signal.SIGKILL)
        await here.until(
            lambda observed: observed.replicas[0].restarts == 1 and observed.replicas[0].phase == READY
        )
        assert (seen_by(tmp_path, 1), seen_by(tmp_path, 2)) == before


async def test_a_gpu_is_given_away_once_its_process_has_ended(tmp_path: Path):
    async with world(tmp_path, big_machine(gpus=(A,))) as here:
        first = here.registry.bundle("1.0.0", token_s=0.2, tokens=3)
        await here.serve(wanted(revision(first), resources=each_with(1)))
        old = pid_of(tmp_path, 1)
        # Nobody asked for a plan, which would have chosen to recreate: the new one has to wait.
        await here.backend.apply(
            wanted(revision(here.registry.bundle("2.0.0"), 2), resources=each_with(1), generation=2)
        )
        waiting = await here.until(lambda observed: observed.reasons)
        assert waiting.reasons == (("INSUFFICIENT_GPU", "needs 1 GPU, and 0 are free"),)
        assert [each.phase for each in waiting.replicas] == [READY, pb.REPLICA_PHASE_SCHEDULING]
        os.kill(old, signal.SIGKILL)
        await here.until(lambda observed: observed.weights == {2: 100})
        assert not psutil.pid_exists(old)
        assert seen_by(tmp_path, 2) == [A]


async def test_another_number_of_gpus_replaces_the_replicas(tmp_path: Path):
    async with world(tmp_path, big_machine(gpus=(A, B, C))) as here:
        bundle = here.registry.bundle()
        await here.serve(wanted(revision(bundle), resources=each_with(1)))
        desired = wanted(revision(bundle), resources=each_with(2), generation=2)
        plan = await here.backend.plan(desired)
        assert (plan.replacement, plan.findings) == (pb.REPLACEMENT_MODE_SURGE, ())
        await here.serve(desired)
        assert len(seen_by(tmp_path, 2)) == 2


async def test_without_a_free_gpu_the_server_chooses_to_recreate(tmp_path: Path):
    async with world(tmp_path, big_machine(gpus=(A, B))) as here:
        await here.serve(wanted(revision(here.registry.bundle("1.0.0"), replicas=2), resources=each_with(1)))
        then = revision(here.registry.bundle("2.0.0"), 2, replicas=2)
        plan = await here.backend.plan(wanted(then, resources=each_with(1)))
        assert plan.replacement == pb.REPLACEMENT_MODE_RECREATE
        assert plan.replacement_reason.endswith("the surge needs 3 GPUs, and 2 are free")
        gpu = plan.capacity[2]
        assert (gpu.resource, gpu.required, gpu.available, gpu.is_sufficient) == (
            "nvidia.com/gpu",
            "2",
            "2",
            True,
        )
        surge = pb.RolloutPolicy(replacement=pb.REPLACEMENT_MODE_SURGE)
        refused = await here.backend.plan(wanted(then, resources=each_with(1), rollout=surge))
        assert [each.reason for each in refused.findings if each.is_blocking] == ["SURGE_WOULD_DEADLOCK"]
        await here.serve(
            wanted(then, resources=each_with(1), mode=pb.REPLACEMENT_MODE_RECREATE, generation=2)
        )
        assert sorted(seen_by(tmp_path, 3) + seen_by(tmp_path, 4)) == [A, B]


async def test_a_swap_keeps_the_gpu_and_a_plan_names_their_number(tmp_path: Path):
    switched = pb.EngineOptions(adapter_mode=pb.ADAPTER_MODE_SWITCHED)
    async with world(tmp_path, big_machine(gpus=(A, B))) as here:
        first = revision(here.registry.bundle("1.0.0", base="smol"))
        await here.serve(wanted(first, engine=switched, resources=each_with(1)))
        has = seen_by(tmp_path, 1)
        second = revision(here.registry.bundle("2.0.0", base="smol"), 2)
        swap = pb.REPLACEMENT_MODE_SWAP_ADAPTER
        await here.serve(wanted(second, engine=switched, resources=each_with(1), mode=swap, generation=2))
        os.kill(pid_of(tmp_path, 1), signal.SIGKILL)
        await here.until(lambda observed: observed.replicas[0].restarts == 1 and observed.weights)
        assert seen_by(tmp_path, 1) == has
        plan = await here.backend.plan(wanted(second, engine=switched, resources=each_with(2)))
        # A swap would leave it with one.
        assert plan.replacement == pb.REPLACEMENT_MODE_RECREATE
        assert "gpu: 2" in plan.objects[0].manifest


async def test_a_gpu_too_few_is_refused_for_all_replicas_together(tmp_path: Path):
    async with world(tmp_path, big_machine(gpus=(A, B))) as here:
        plan = await here.backend.plan(
            wanted(revision(here.registry.bundle(), replicas=3), resources=each_with(1))
        )
        (finding,) = plan.findings
        assert (finding.reason, finding.field, finding.is_blocking) == (
            "INSUFFICIENT_GPU",
            "resources.gpus",
            True,
        )
        assert finding.message == "the deployment needs 3 GPUs, and 2 are free"


def test_a_gpu_that_is_held_under_another_name_is_given_to_nobody():
    room = Room(big_machine(gpus=(A, B)))
    room.hold("adopted", Need(1, 1, 1), ["0"])
    assert room.take("new", Need(1, 1, 1)).message == "needs 1 GPU, and 0 are free"
    room.give_back("adopted")
    assert room.take("new", Need(1, 1, 1)) is None
    assert room.gpus_of("new") == (A,)


@pytest.mark.parametrize(
    ("one", "other", "may_be"),
    [
        ("0", "0", True),
        ("1", "10", False),
        ("0", A, True),
        (A, A[:12], True),
        (A, B, False),
        (A, PART, False),
    ],
)
def test_names_that_cannot_be_told_apart_may_be_the_same(one: str, other: str, may_be: bool):
    assert gpus.may_be_same(one, other) is gpus.may_be_same(other, one) is may_be


@pytest.mark.parametrize(
    ("visible", "left"),
    [
        (None, (A, B, C)),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("2,0", ("2", "0")),
        ("0, 1", ("0", "1")),
        ("0,3,1", ("0",)),
        ("1,1,0", ("1",)),
        (f"{B},{A}", (B, A)),
        ("GPU-bbbb", (B,)),
        (f"{A},GPU-ffff,{B}", (A,)),
    ],
)
def test_of_a_deployers_own_restriction_only_that_is_handed_out(visible, left):
    assert gpus.allowed((A, B, C), visible) == left


def test_without_nvidia_smi_a_restriction_by_uuid_is_believed():
    assert gpus.allowed(("0", "1"), A) == (A,)
    assert gpus.allowed((), f"0,{A}") == ()


LISTING = f"""GPU 0: NVIDIA H100 80GB HBM3 (UUID: {A})
GPU 1: NVIDIA H100 80GB HBM3 (UUID: {B})
  MIG 1g.10gb     Device  0: (UUID: {PART})
  MIG 2g.20gb     Device  1: (UUID: MIG-GPU-22222222-0000-0000-0000-000000000000/1/0)
GPU 2: NVIDIA A10G (UUID: {C})
"""


def test_of_a_partitioned_gpu_its_parts_are_listed():
    older = "MIG-GPU-22222222-0000-0000-0000-000000000000/1/0"
    assert gpus.listed(LISTING) == (A, PART, older, C)
    assert gpus.listed("No devices found.\n") == ()


@pytest.mark.parametrize(
    ("script", "found"),
    [(f"cat <<'END'\n{LISTING}END", A), ("echo 'no driver'; exit 9", "0")],
    ids=["answers", "fails"],
)
def test_gpus_are_named_by_uuid_where_the_driver_tells(tmp_path, monkeypatch, script, found):
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\n[ "$1" = -L ] || exit 2\n{script}\n')
    program.chmod(0o755)
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(gpus, "_DEVICES", tmp_path)
    assert gpus.of_machine({})[0] == found
    assert gpus.of_machine({"CUDA_VISIBLE_DEVICES": ""}) == ()
