"""Replicas that use more memory than their limit, and those that only seem to."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from google.protobuf.duration_pb2 import Duration

from deployer.local.replicas.test_processes import FAST, pid_of
from deployer.local.worlds import KEY, NAME, READY, World, revision, servers, spec, wanted, world
from neuroweaver.deployer.domain.backend import Observed
from neuroweaver.v1 import deployer_pb2 as pb

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")

LIMITED = pb.ReplicaResources(cpu_request="1", memory_request="64Mi", memory_limit="128Mi")


async def hold(here: World, mib: int, *, mapped: bool = False) -> None:
    (replica,) = here.backend.fleet(KEY).replicas
    body = {"mib": mib, "mapped": mapped}
    assert (await here.client.post(f"{replica.base_url}/fake/hold", json=body)).status_code == 200


def has_failed(observed: Observed) -> bool:
    return observed.replicas[0].phase == pb.REPLICA_PHASE_FAILED


async def test_a_replica_beyond_its_limit_is_ended_and_started_again(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle()), resources=LIMITED, recovery=FAST))
        greedy = pid_of(tmp_path, 1)
        await hold(here, 200)
        failed = await here.until(has_failed)
        (replica,) = failed.replicas
        used = replica.message.removeprefix("used ").removesuffix(
            "Mi of memory, more than its limit of 128Mi (OOM_KILLED)"
        )
        assert 128 < int(used) < 256, replica.message  # it may be seen before it holds all
        assert replica.last_exit == 137
        assert replica.restart_at
        assert failed.reasons == (("OOM_KILLED", replica.message),)

        healed = await here.until(lambda observed: observed.replicas[0].phase == READY)
        assert (healed.replicas[0].restarts, healed.replicas[0].last_exit) == (1, 137)
        assert healed.reasons == ()
        assert greedy not in servers(tmp_path)


async def test_a_replica_that_never_fits_is_in_a_crash_loop(tmp_path: Path):
    recovery = pb.RecoveryPolicy(restart_backoff=Duration(seconds=1), crash_loop_restarts=2)
    async with world(tmp_path) as here:
        bundle = here.registry.bundle(holds_mib=200, warm_s=600)
        await here.backend.apply(wanted(revision(bundle), resources=LIMITED, recovery=recovery))
        looping = await here.until(
            lambda observed: observed.replicas and observed.replicas[0].phase == pb.REPLICA_PHASE_CRASH_LOOP
        )
        (replica,) = looping.replicas
        assert replica.message.endswith("(OOM_KILLED)")
        assert looping.reasons == (("CRASH_LOOP", replica.message), ("OOM_KILLED", replica.message))
        # While it starts again nothing else would tell why it is not ready.
        again = await here.until(lambda observed: observed.replicas[0].phase != pb.REPLICA_PHASE_CRASH_LOOP)
        ((reason, message),) = again.reasons
        assert (reason, message[-12:]) == ("OOM_KILLED", "(OOM_KILLED)")


async def test_mapped_weights_do_not_count(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle()), resources=LIMITED, recovery=FAST))
        await hold(here, 300, mapped=True)
        assert psutil.Process(pid_of(tmp_path, 1)).memory_info().rss > 300 << 20
        await hold(here, 150)
        failed = await here.until(has_failed)
        # Of what it was ended for, the mapped pages were no part.
        assert int(failed.replicas[0].message.split()[1].removesuffix("Mi")) < 300


async def test_a_draining_replica_keeps_to_its_limit(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle(stubborn=True)), resources=LIMITED))
        patient = spec(drain_timeout=Duration(seconds=3600))
        assert not await here.backend.remove(KEY, NAME, patient)
        await hold(here, 200)
        # Once the replica has gone, nothing is observed but the empty deployment.
        await here.until(lambda observed: not observed.replicas)
        assert servers(tmp_path) == []
