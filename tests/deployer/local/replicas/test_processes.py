"""Real processes that start, fail, heal and end. They are fake model servers: see fake_server.py."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx2
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration

from deployer.local.worlds import KEY, NAME, READY, big_machine, revision, servers, spec, wanted, world
from neuroweaver.cluster.errors import BackendError
from neuroweaver.deployer.domain.backend import Observed
from neuroweaver.v1 import deployer_pb2 as pb

FAST = pb.RecoveryPolicy(restart_backoff=Duration(seconds=1), max_restart_backoff=Duration(seconds=1))


def pid_of(home: Path, number: int) -> int:
    """Of the replica with that number."""
    config = str(home / "deployments" / NAME / str(number) / "config.json")
    for process in psutil.process_iter():
        try:
            if config in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                return process.pid
        except psutil.Error:
            continue
    raise AssertionError(f"replica {number} does not run")


async def test_a_wish_becomes_ready_replicas_that_answer(tmp_path: Path):
    async with world(tmp_path) as here:
        desired = wanted(revision(here.registry.bundle(load_s=0.2, warm_s=0.1), replicas=2))
        observed = await here.serve(desired)
        assert [each.replica_id for each in observed.replicas] == [f"{NAME}-1", f"{NAME}-2"]
        assert observed.weights == {1: 100}
        answer = await here.ask()
        assert answer.status_code == 200
        assert answer.headers["x-neuroweaver-revision"] == "1"
        assert answer.json()["version"] == "1.0.0"


async def test_the_phases_of_a_cold_start_are_told_in_order_with_their_times(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle(start_s=0.3, load_s=0.5, warm_s=0.4))))
        (replica,) = (await here.observe()).replicas
        assert [phase for phase, _ in replica.phases] == [
            pb.REPLICA_PHASE_SCHEDULING,
            pb.REPLICA_PHASE_PULLING,
            pb.REPLICA_PHASE_LOADING,
            pb.REPLICA_PHASE_WARMING,
        ]
        seconds = {phase: took.total_seconds() for phase, took in replica.phases}
        assert seconds[pb.REPLICA_PHASE_PULLING] >= 0.3
        assert seconds[pb.REPLICA_PHASE_LOADING] >= 0.5
        assert seconds[pb.REPLICA_PHASE_WARMING] >= 0.4
        seen = [each.replicas[0].phase for each in here.seen if each.replicas]
        assert seen == sorted(seen)
        assert {pb.REPLICA_PHASE_LOADING, pb.REPLICA_PHASE_WARMING, READY} <= set(seen)
        assert replica.ready_time
        assert replica.start_time
        assert replica.last_token_time


async def test_the_end_of_the_backend_leaves_no_process(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle(), replicas=2)))
        assert len(servers(tmp_path)) == 2
    assert servers(tmp_path) == []


async def test_a_killed_replica_is_started_again(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle()), recovery=FAST))
        killed = pid_of(tmp_path, 1)
        os.kill(killed, signal.SIGKILL)
        failed = await here.until(lambda observed: observed.replicas[0].phase == pb.REPLICA_PHASE_FAILED)
        assert failed.replicas[0].message.startswith("It was killed")
        assert failed.replicas[0].last_exit == 128 + signal.SIGKILL
        assert failed.replicas[0].restart_at
        assert failed.weights == {}
        healed = await here.until(lambda observed: observed.replicas[0].phase == READY)
        assert healed.replicas[0].restarts == 1
        assert pid_of(tmp_path, 1) != killed


async def test_a_crash_loop_is_recognised_with_the_reason_from_the_log(tmp_path: Path):
    recovery = pb.RecoveryPolicy(restart_backoff=Duration(seconds=1), crash_loop_restarts=2)
    async with world(tmp_path) as here:
        bundle = here.registry.bundle(exit=4, says="ValueError: hidden size 576 does not fit")
        await here.backend.apply(wanted(revision(bundle), recovery=recovery))
        observed = await here.until(
            lambda observed: observed.replicas and observed.replicas[0].phase == pb.REPLICA_PHASE_CRASH_LOOP
        )
        (replica,) = observed.replicas
        assert replica.message == ("The model cannot be loaded: ValueError: hidden size 576 does not fit")
        assert replica.last_exit == 4
        assert ("CRASH_LOOP", replica.message) in observed.reasons


async def test_a_wedged_engine_behind_an_open_port_is_restarted(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle()), recovery=FAST))
        wedged = pid_of(tmp_path, 1)
        (replica,) = here.backend.fleet(KEY).replicas
        assert (await here.client.post(f"{replica.base_url}/fake/wedge")).status_code == 200
        sick = await here.until(lambda observed: observed.weights == {})
        assert sick.replicas[0].message == "the engine stands still"
        ended = await here.until(lambda observed: "made no tokens" in observed.replicas[0].message)
        assert ended.replicas[0].phase == pb.REPLICA_PHASE_FAILED
        await here.until(lambda observed: observed.replicas[0].phase == READY)
        assert wedged not in servers(tmp_path)


async def test_a_process_that_hangs_is_restarted(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle()), recovery=FAST))
        hung = pid_of(tmp_path, 1)
        os.kill(hung, signal.SIGSTOP)
        await here.until(lambda observed: observed.replicas[0].restarts == 1)
        await here.until(lambda observed: observed.replicas[0].phase == READY)
        assert hung not in servers(tmp_path)


async def test_a_replica_that_is_not_ready_in_time_is_ended(tmp_path: Path):
    async with world(tmp_path) as here:
        bundle = here.registry.bundle(load_s=600)
        await here.backend.apply(wanted(revision(bundle), startup_timeout=Duration(seconds=2)))
        observed = await here.until(
            lambda observed: observed.replicas and observed.replicas[0].phase == pb.REPLICA_PHASE_FAILED
        )
        assert observed.replicas[0].message == "was not ready within startup_timeout, 2 s"


async def test_a_running_stream_is_finished_while_its_replica_drains(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle(tokens=20, token_s=0.05))))
        url = f"{here.backend.endpoint(KEY)}/chat/completions"
        lines = []
        async with here.client.stream("POST", url, json={"stream": True}) as answer:
            async for line in answer.aiter_lines():
                if line and not lines:
                    assert not await here.backend.remove(KEY, NAME, spec())
                    assert (await here.observe()).weights == {}
                if line:
                    lines.append(line)
        assert lines == [*(f"data: {number}" for number in range(20)), "data: [DONE]"]
        await here.gone()
        assert await here.observe() == Observed()
        assert not (tmp_path / "deployments" / NAME).exists()


async def test_a_replica_that_does_not_drain_is_killed(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle(stubborn=True))))
        stubborn = spec(drain_timeout=Duration(seconds=1))
        assert not await here.backend.remove(KEY, NAME, stubborn)
        await here.gone()
        assert servers(tmp_path) == []


async def test_fewer_replicas_are_drained_and_more_are_started(tmp_path: Path):
    async with world(tmp_path) as here:
        bundle = here.registry.bundle()
        await here.serve(wanted(revision(bundle, replicas=1)))
        await here.serve(wanted(revision(bundle, replicas=3), generation=2))
        observed = await here.serve(wanted(revision(bundle, replicas=1), generation=3))
        assert [each.replica_id for each in observed.replicas] == [f"{NAME}-1"]
        await here.serve(wanted(revision(bundle, replicas=0), generation=4))
        assert servers(tmp_path) == []


async def test_a_surge_never_leaves_a_gap(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle("1.0.0"), replicas=2)))
        after = wanted(
            revision(here.registry.bundle("2.0.0", load_s=0.3), 2, replicas=2),
            mode=pb.REPLACEMENT_MODE_SURGE,
            generation=2,
        )
        await here.backend.apply(after)
        seen = []
        while True:
            observed = await here.observe()
            seen.append(sum(each.phase == READY for each in observed.replicas))
            answer = await here.ask()
            assert answer.status_code == 200
            if observed.applied_generation == 2 and set(observed.weights) == {2}:
                break
            assert len([each for each in observed.replicas if each.phase != pb.REPLICA_PHASE_DRAINING]) <= 3
        assert min(seen) >= 2
        assert (await here.ask()).json()["version"] == "2.0.0"


async def test_a_recreation_ends_the_old_before_the_new_begins(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle("1.0.0"))))
        await here.serve(
            wanted(
                revision(here.registry.bundle("2.0.0"), 2), mode=pb.REPLACEMENT_MODE_RECREATE, generation=2
            )
        )
        together = [each for each in here.seen if {1, 2} <= {replica.revision for replica in each.replicas}]
        assert together == []
        assert [each.revision for each in (await here.observe()).replicas] == [2]


SWITCHED = pb.EngineOptions(adapter_mode=pb.ADAPTER_MODE_SWITCHED)


async def test_a_swap_changes_the_adapter_of_a_running_process(tmp_path: Path):
    async with world(tmp_path) as here:
        first = here.registry.bundle("1.0.0", base="smol")
        await here.serve(wanted(revision(first), engine=SWITCHED))
        before = pid_of(tmp_path, 1)
        second = here.registry.bundle("2.0.0", base="smol")
        desired = wanted(
            revision(second, 2), mode=pb.REPLACEMENT_MODE_SWAP_ADAPTER, generation=2, engine=SWITCHED
        )
        observed = await here.serve(desired)
        assert pid_of(tmp_path, 1) == before
        (swapped,) = observed.replicas
        assert swapped.revision == 2
        answer = await here.ask()
        assert (answer.json()["version"], answer.headers["x-neuroweaver-revision"]) == ("2.0.0", "2")
        loaded = await here.until(lambda observed: observed.replicas[0].loaded_versions == ("2.0.0",))
        assert loaded.replicas[0].restarts == 0

        os.kill(before, signal.SIGKILL)
        await here.until(lambda observed: observed.replicas[0].restarts == 1 and observed.weights == {2: 100})
        assert (await here.ask()).json()["version"] == "2.0.0"


async def test_where_a_swap_fails_the_replica_is_started_anew(tmp_path: Path):
    async with world(tmp_path) as here:
        first = here.registry.bundle("1.0.0", base="smol", refuses_adapters=True)
        await here.serve(wanted(revision(first), engine=SWITCHED))
        second = here.registry.bundle("2.0.0", base="smol")
        desired = wanted(
            revision(second, 2), mode=pb.REPLACEMENT_MODE_SWAP_ADAPTER, generation=2, engine=SWITCHED
        )
        observed = await here.serve(desired)
        assert [each.replica_id for each in observed.replicas] == [f"{NAME}-2"]
        assert (await here.ask()).json()["version"] == "2.0.0"


async def test_other_engine_options_replace_the_replicas_of_the_same_revision(tmp_path: Path):
    async with world(tmp_path) as here:
        bundle = here.registry.bundle()
        await here.serve(wanted(revision(bundle)))
        observed = await here.serve(
            wanted(revision(bundle), generation=2, engine=pb.EngineOptions(max_batch_size=4))
        )
        assert [each.replica_id for each in observed.replicas] == [f"{NAME}-2"]


async def test_without_room_a_replica_waits_and_says_what_it_lacks(tmp_path: Path):
    async with world(tmp_path, big_machine(cores=1)) as here:
        desired = wanted(revision(here.registry.bundle(), replicas=2))
        await here.backend.apply(desired)
        observed = await here.until(lambda observed: observed.weights and observed.reasons)
        assert observed.reasons == (("INSUFFICIENT_CPU", "needs 1 CPU, and 0 are free"),)
        assert [each.phase for each in observed.replicas] == [READY, pb.REPLICA_PHASE_SCHEDULING]
        assert observed.applied_generation == 0


async def test_logs_are_read_on_from_a_cursor(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle()), recovery=FAST))
        lines = [line async for line in here.backend.logs(KEY, NAME, spec(), {})]
        assert [(line.replica_id, line.revision, line.message, line.level) for line in lines] == [
            (f"{NAME}-1", 1, "INFO ready", "INFO")
        ]
        since = {lines[-1].replica_id: lines[-1].cursor}
        assert [line async for line in here.backend.logs(KEY, NAME, spec(), since)] == []
        os.kill(pid_of(tmp_path, 1), signal.SIGKILL)
        await here.until(lambda observed: observed.replicas[0].restarts == 1 and observed.weights)
        again = [line.message async for line in here.backend.logs(KEY, NAME, spec(), since)]
        assert again == ["INFO ready"]


async def test_two_deployers_do_not_share_a_home(tmp_path: Path):
    async with world(tmp_path):
        with pytest.raises(BackendError, match="another deployer is running in"):
            async with world(tmp_path):
                pass


async def test_a_taken_port_is_said_in_one_line(tmp_path: Path):
    async with world(tmp_path / "one") as here:
        port = httpx2.URL(here.backend.endpoint(KEY)).port
        with pytest.raises(BackendError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with world(tmp_path / "two", port=port):
                pass


async def test_changes_are_told_to_who_watches(tmp_path: Path):
    async with world(tmp_path) as here:
        told: asyncio.Queue = asyncio.Queue()
        watching = asyncio.create_task(here.backend.run(told.put_nowait))
        await asyncio.sleep(0)
        await here.serve(wanted(revision(here.registry.bundle())))
        assert await asyncio.wait_for(told.get(), 60) == KEY
        watching.cancel()
