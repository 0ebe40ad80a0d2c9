"""The loop against a fake backend: faults at every call, kills at every step, several loops at once."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from unittest.mock import Mock

import pytest

from deployer.fakes import Killed, unreachable
from deployer.worlds import KEY, QUICK, World, beside, deploy, get, publish, until
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.__main__ import service
from neuroweaver.deployer.control.reconciler import Reconciler
from neuroweaver.deployer.storage import tables
from neuroweaver.deployer.storage.lease import Lease, LeaseHolder, LeaseLost
from neuroweaver.mesh.machine.processes import own_name
from neuroweaver.v1 import deployer_pb2 as pb


async def grown(mesh: World) -> None:
    """A course with everything in it: a start, a scaling, a rollout."""
    await deploy(mesh, pb.DeploymentSpec(version="1.0.0", replicas=1))
    await mesh.settle()
    await deploy(mesh, pb.DeploymentSpec(version="2.0.0", replicas=2))


def settled(deployment: pb.Deployment) -> bool:
    return (
        deployment.state == pb.DEPLOYMENT_STATE_READY
        and deployment.replicas.ready == 2
        and deployment.stable_revision == 2
        and deployment.replicas.current == 2
    )


async def calls_of_a_quiet_course(mesh: World) -> int:
    await grown(mesh)
    mesh.backend.calls.clear()
    await mesh.settle()
    return len(mesh.backend.calls)


async def test_a_fault_at_any_call_delays_and_changes_nothing_else(lone):
    """409, 429, 5xx, a cut connection, a call that never ends: all come out of a backend as trouble."""
    await publish(lone.registry, "1.0.0", "2.0.0")
    total = await calls_of_a_quiet_course(lone)
    assert total > 6
    for number in range(1, total + 1):
        for trouble in (Trouble.UNREACHABLE, Trouble.CONFLICT):
            await remade(lone)
            await grown(lone)
            lone.backend.calls.clear()

            def fail(call, name, number=number, trouble=trouble):
                if call == number:
                    raise BackendError(trouble, f"at call {call}, {name}")

            lone.backend.fail = fail
            for _ in range(30):
                await lone.reconciler.look(KEY)
                if len(lone.backend.calls) > number and settled(await lone.seen()):
                    break
            assert settled(await get(lone)), f"{trouble} at call {number}: {await get(lone)}"
            assert_no_orphans(lone)


async def test_an_unforeseen_exception_of_a_backend_is_survived(lone):
    await publish(lone.registry, "1.0.0", "2.0.0")
    await grown(lone)
    lone.backend.calls.clear()

    def fail(call, _name):
        if call == 1:
            raise ZeroDivisionError

    lone.backend.fail = fail
    assert (await lone.reconciler.look(KEY)).trouble.trouble == Trouble.UNREACHABLE
    await lone.settle()
    assert settled(await get(lone))


async def test_a_call_that_hangs_is_given_up(lone):
    await publish(lone.registry, "1.0.0")
    await deploy(lone)

    async def hang(*_):
        await asyncio.Event().wait()

    apply, lone.backend.apply = lone.backend.apply, hang
    impatient = Reconciler(
        lone.store, {pb.DEPLOYMENT_BACKEND_LOCAL: lone.backend}, pace=replace(QUICK, call_s=0.05)
    )
    look = await impatient.look(KEY)
    assert look.trouble.trouble == Trouble.UNREACHABLE
    lone.backend.apply = apply
    assert (await lone.settle()).state == pb.DEPLOYMENT_STATE_READY


async def test_a_kill_after_any_call_converges(lone):
    """The loop ends at the k-th call, before it or right after it was done; another one goes on."""
    await publish(lone.registry, "1.0.0", "2.0.0")
    total = await calls_of_a_quiet_course(lone)
    for number in range(1, total + 1):
        await remade(lone)
        await grown(lone)
        await killed_at(lone, number, looks=30)
        lone.reconciler = Reconciler(lone.store, {pb.DEPLOYMENT_BACKEND_LOCAL: lone.backend}, pace=QUICK)
        await lone.settle()
        assert settled(await get(lone)), f"killed at call {number}"
        assert_no_orphans(lone)
        events = await lone.events()
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_a_kill_while_it_is_removed_leaves_nothing_behind(lone):
    await publish(lone.registry, "1.0.0")
    for number in range(1, 12):
        await deploy(lone, pb.DeploymentSpec(version="1.0.0", replicas=3))
        await lone.settle()
        await lone.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor"))
        await killed_at(lone, number, looks=10)
        assert (await lone.settle()).state == pb.DEPLOYMENT_STATE_DELETED
        assert not lone.backend.places


async def test_the_loop_runs_by_itself_and_ends_with_what_it_tends(mesh):
    await publish(mesh.registry, "1.0.0")
    async with beside(mesh.reconciler.lead()):
        await deploy(mesh)
        await until(lambda: is_in(mesh, pb.DEPLOYMENT_STATE_READY))
        mesh.backend.log(KEY, "r", "hello")
        mesh.backend.set_phase(KEY, pb.REPLICA_PHASE_FAILED, message="Killed")
        mesh.backend.change(KEY)
        await until(lambda: is_in(mesh, pb.DEPLOYMENT_STATE_FAILED))
        mesh.backend.set_phase(KEY, pb.REPLICA_PHASE_READY)
        await until(lambda: is_in(mesh, pb.DEPLOYMENT_STATE_READY))
        await until(lambda: first_line(mesh))
        await mesh.deployer.UndeployModel(pb.UndeployModelRequest(model_id="advisor"))
        await until(lambda: is_in(mesh, pb.DEPLOYMENT_STATE_DELETED))
        await deploy(mesh)
        await until(lambda: is_in(mesh, pb.DEPLOYMENT_STATE_READY))


async def test_one_broken_deployment_holds_up_no_other(lone):
    for model_id in ("advisor", "buyer"):
        await publish(lone.registry, "1.0.0", model_id=model_id)
        await deploy(lone, model_id=model_id)
    apply = lone.backend.apply

    async def broken(wanted):
        if wanted.key == KEY:
            raise BackendError(Trouble.FORBIDDEN, "may not")
        await apply(wanted)

    lone.backend.apply = broken
    async with beside(lone.reconciler.lead()):

        async def other():
            return (await get(lone, "buyer")).state == pb.DEPLOYMENT_STATE_READY

        await until(other)
        await until(lambda: is_in(lone, pb.DEPLOYMENT_STATE_FAILED))
        failed = await get(lone)
        assert failed.message == "may not"
        lone.backend.apply = apply
        await until(lambda: is_in(lone, pb.DEPLOYMENT_STATE_READY))


def cut_short(mesh: World) -> None:
    """Logs that end in an error after their first new line."""
    logs = mesh.backend.logs

    async def cut(*arguments):
        async for line in logs(*arguments):
            yield line
            break
        raise unreachable()

    mesh.backend.logs = cut


async def test_lines_that_came_before_an_error_are_kept_and_not_read_again(lone):
    await publish(lone.registry, "1.0.0")
    await deploy(lone)
    for number in range(3):
        lone.backend.log(KEY, "r", f"line {number}")
    cut_short(lone)
    for known in (1, 2, 3, 3):
        with pytest.raises(BackendError):
            await lone.reconciler.logs.collect(KEY)
        async with lone.store.read("default") as deployments:
            lines = await deployments.lines(KEY, 0, 100)
        assert [line.message for _, line in lines] == [f"line {number}" for number in range(known)]


async def test_logs_that_cannot_be_read_are_told_of_once(lone, caplog):
    await publish(lone.registry, "1.0.0")
    await deploy(lone)
    logs = lone.backend.logs

    async def read_again(times: int = 5) -> None:
        wanted = lone.backend.calls.count("logs") + times
        await until(lambda: asyncio.sleep(0, lone.backend.calls.count("logs") >= wanted))

    def told() -> list[str]:
        told = (each for each in caplog.records if each.levelname == "WARNING")
        return [each.cause for each in told if getattr(each, "loop", "") == "logs"]

    async with beside(lone.reconciler.lead()):
        cut_short(lone)
        await read_again()
        assert len(told()) == 1
        lone.backend.logs = logs
        await read_again()
        cut_short(lone)
        await read_again()
        assert len(told()) == 2
        assert len(set(told())) == 1


async def test_trouble_is_met_with_longer_and_longer_waits(lone):
    await publish(lone.registry, "1.0.0")
    await deploy(lone)

    def fail(_call, _name):
        raise unreachable()

    lone.backend.fail = fail
    delays = [(await lone.reconciler.look(KEY)).delay_s for _ in range(6)]
    assert delays == sorted(delays)
    assert delays[0] < delays[3] <= QUICK.max_backoff_s == delays[-1]

    def slow_down(_call, _name):
        raise BackendError(Trouble.UNREACHABLE, "429", retry_after_s=7.0)

    lone.backend.fail = slow_down
    assert (await lone.reconciler.look(KEY)).delay_s == 7.0


async def test_of_several_deployers_one_at_a_time_runs_the_loop(mesh):
    await publish(mesh.registry, "1.0.0")
    reconcilers = [
        Reconciler(mesh.store, {pb.DEPLOYMENT_BACKEND_LOCAL: mesh.backend}, pace=QUICK) for _ in range(3)
    ]
    holders = [LeaseHolder(mesh.store.database, beat_s=0.05, silence_s=1.0) for _ in reconcilers]
    pairs = zip(holders, reconcilers, strict=True)
    async with beside(*(holder.run(reconciler.lead) for holder, reconciler in pairs)) as loops:
        await deploy(mesh, pb.DeploymentSpec(version="1.0.0", replicas=2))
        await until(lambda: is_in(mesh, pb.DEPLOYMENT_STATE_READY))
        working = [reconciler for reconciler in reconcilers if reconciler._tended]
        assert len(working) == 1
        leader = reconcilers.index(working[0])
        loops[leader].cancel()
        await asyncio.gather(loops[leader], return_exceptions=True)
        await mesh.deployer.ScaleDeployment(pb.ScaleDeploymentRequest(model_id="advisor", replicas=3))

        async def scaled():
            return (await get(mesh)).replicas.ready == 3

        await until(scaled)
        assert mesh.backend.most_at_work == 1


async def test_a_loop_whose_lease_was_taken_writes_nothing(mesh):
    await publish(mesh.registry, "1.0.0")
    leases: list[Lease] = []

    async def lead(lease: Lease) -> None:
        leases.append(lease)
        await asyncio.Event().wait()

    async with beside(LeaseHolder(mesh.store.database, beat_s=0.05, silence_s=0.5).run(lead)):
        await until(lambda: asyncio.sleep(0, bool(leases)))
        await deploy(mesh)
        before = await mesh.events()
        # A second one that saw the first fall silent; the first has not noticed yet.
        table = tables.leases
        async with mesh.store.database.write() as connection:
            await connection.execute(table.update().values(token=leases[0].token + 1, holder="another"))
        with pytest.raises(LeaseLost):
            await mesh.reconciler.look(KEY, leases[0])
        assert await mesh.events() == before


async def test_a_deployer_that_lost_its_lease_stands_by_and_takes_it_again(mesh):
    await publish(mesh.registry, "1.0.0")
    deployer = service(mesh.store, mesh.planner, {pb.DEPLOYMENT_BACKEND_LOCAL: mesh.backend}, mesh.registry)
    table = tables.leases

    async def hold(holder: str) -> None:
        async with mesh.store.database.write() as connection:
            await connection.execute(table.update().values(token=table.c.token + 1, holder=holder))

    working = asyncio.ensure_future(deployer.background[0]())
    try:
        await deploy(mesh)
        await until(lambda: is_in(mesh, pb.DEPLOYMENT_STATE_READY))
        await hold("another")
        await mesh.deployer.ScaleDeployment(pb.ScaleDeploymentRequest(model_id="advisor", replicas=2))
        await until(lambda: asyncio.sleep(0, working.done() or not mesh.backend.is_watched))
        assert not working.done()
        await hold("")

        async def scaled() -> bool:
            return (await get(mesh)).replicas.ready == 2

        await until(scaled)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def test_a_silent_holder_is_followed_by_another(mesh):
    taken: list[int] = []

    async def lead(lease: Lease) -> None:
        taken.append(lease.token)
        await asyncio.Event().wait()

    silent = LeaseHolder(mesh.store.database, beat_s=0.05, silence_s=0.3)
    lease = await silent._acquired()  # and dies without a word
    async with beside(LeaseHolder(mesh.store.database, beat_s=0.05, silence_s=0.3).run(lead)):
        await until(lambda: asyncio.sleep(0, bool(taken)))
    assert taken == [lease.token + 1]


async def test_a_holder_whose_process_has_died_on_this_machine_is_followed_at_once(mesh):
    taken: list[int] = []

    async def lead(lease: Lease) -> None:
        taken.append(lease.token)
        await asyncio.Event().wait()

    for name in (own_name(), f"{'0' * 16}.1.1", "a name of an earlier release"):
        alive = LeaseHolder(mesh.store.database, silence_s=3600)
        alive._holder = f"{name}/1"
        lease = await alive._acquired()
        waiting = LeaseHolder(mesh.store.database, beat_s=0.02, silence_s=3600)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await waiting._acquired()
        await alive._release(lease)

    machine, pid, started = own_name().split(".")
    dead = LeaseHolder(mesh.store.database, silence_s=3600)
    dead._holder = f"{machine}.{pid}.{int(started) - 1}/1"
    lease = await dead._acquired()
    async with beside(LeaseHolder(mesh.store.database, beat_s=0.02, silence_s=3600).run(lead)):
        await until(lambda: asyncio.sleep(0, bool(taken)))
    assert taken == [lease.token + 1]
    assert not await dead._update(lease, beat=1)


async def test_a_holder_without_its_database_stops_before_another_begins(mesh, monkeypatch):
    began: asyncio.Queue[str] = asyncio.Queue()
    working: set[str] = set()

    async def no_answer(_work: object) -> None:
        await asyncio.Event().wait()

    def running(name: str) -> asyncio.Task[None]:
        async def lead(_lease: Lease) -> None:
            began.put_nowait(name if not working else f"{name} beside {working}")
            working.add(name)
            try:
                await asyncio.Event().wait()
            finally:
                working.discard(name)

        return asyncio.create_task(holders[name].run(lead))

    holders = {name: LeaseHolder(mesh.store.database, beat_s=0.1, silence_s=2.0) for name in ("one", "two")}
    async with asyncio.timeout(120):
        first = running("one")
        assert await began.get() == "one"
        monkeypatch.setattr(holders["one"], "_database", Mock(transact=no_answer))
        second = running("two")
        assert await began.get() == "two"
    for task in (first, second):
        task.cancel()
    await asyncio.gather(first, second, return_exceptions=True)


async def killed_at(mesh: World, number: int, *, looks: int) -> None:
    """Looks until the backend is called for the `number`-th time from now on."""
    mesh.backend.calls.clear()

    def fail(call, _name):
        if call == number:
            raise Killed

    mesh.backend.fail = fail
    with contextlib.suppress(Killed):
        for _ in range(looks):
            await mesh.reconciler.look(KEY)
    mesh.backend.fail = lambda _call, _name: None


async def remade(mesh: World) -> None:
    """Without the deployment, as if it never was."""
    mesh.backend.__init__()
    async with mesh.store.database.write() as connection:
        for table in reversed(tables.METADATA.sorted_tables):
            await connection.execute(table.delete())


def assert_no_orphans(mesh: World) -> None:
    (place,) = mesh.backend.places.values()
    assert {each.revision for each in place.replicas.values()} == {2}
    assert len(mesh.backend.names) == 1


async def is_in(mesh: World, state: int) -> bool:
    seen = await mesh.seen()
    return seen is not None and seen.state == state


async def first_line(mesh: World) -> bool:
    async with mesh.store.read("default") as deployments:
        return bool(await deployments.lines(KEY, 0, 1))
