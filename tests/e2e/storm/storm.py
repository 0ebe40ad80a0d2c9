"""A quiet time, then a storm of faults and hostile clients, then the count: what was lost, refused, slowed down."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx2
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deployer.test_end_to_end import SPEC, publish_adapters
from deployer.worlds import until as wait_until
from disks import CannotMount, Disk, mounted
from e2e.processes import SERVICES, Mesh, mesh
from e2e.storm import contention
from e2e.storm.hostile import Hostile
from e2e.storm.record import OK, Record, until
from experiment.faults import SIZE, UNITS, expected, exposures, sums
from experiment.serving import metric, spec
from neuroweaver.v1 import deployer_pb2, experiment_pb2, registry_pb2, trainer_pb2
from neuroweaver.v1.deployer_pb2_grpc import DeployerServiceStub
from neuroweaver.v1.experiment_pb2_grpc import ExperimentServiceStub
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
from neuroweaver.v1.trainer_pb2_grpc import TrainerServiceStub
from ports import free_port
from registry import faults
from serving import models

DONE = (trainer_pb2.JOB_STATE_SUCCEEDED, trainer_pb2.JOB_STATE_FAILED, trainer_pb2.JOB_STATE_CANCELLED)
SERVED = "served"
DISK_MIB = 1024
_PATIENCE_S = 180.0


@dataclass(frozen=True)
class Plan:
    """quiet_s: before the storm. storm_s: at least so long, and until each kind of fault came once.

    pause_s: the longest time from one fault's end to the next. has_jobs: training goes on all the time.
    timeout_s: after which a caller takes a call for failed.
    """

    quiet_s: float
    storm_s: float
    pause_s: float
    timeout_s: float = 10.0
    is_postgresql: bool = True
    has_hostile_clients: bool = True
    has_jobs: bool = True
    seed: int = 1


@dataclass
class Outcome:
    record: Record
    faults: list[str]
    lost: list[str] = field(default_factory=list)
    """What was acknowledged and is not there, or what no order of the calls explains."""
    times: dict[str, int] = field(default_factory=dict)
    """Of each kind of fault."""
    quiet: dict[str, list[float]] = field(default_factory=dict)
    storm: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of the calls of each kind, ascending, without those that met an outage."""
    resident: dict[str, list[int]] = field(default_factory=dict)
    """Bytes of each service over time."""
    acknowledged: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


@dataclass
class World:
    plan: Plan
    running: Mesh
    record: Record
    crash_database: Callable[[], Awaitable[None]] | None
    disk: Disk | None
    registry: Any
    experiment: Any
    deployer: Any
    trainer: Any
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    is_being_killed: set[str] = field(default_factory=set)
    endpoint: str = ""
    now_us: int = 0


async def run(plan: Plan, home: Path) -> Outcome:
    """home: an empty folder. Raises AssertionError if the services do not even come up."""
    async with AsyncExitStack() as stack:
        world, skipped = await _world(plan, home, stack)
        await _furnish(world, home)
        history = contention.History()
        outcome = Outcome(world.record, [], skipped=skipped)
        told, watcher = faults.Told(), faults.Watcher(world.running.addresses["registry"])
        jobs: list[str] = []
        following = asyncio.create_task(watcher.follow())
        async with asyncio.TaskGroup() as group:
            for work in _innocents(world, history, told, jobs):
                group.create_task(_to_the_end(world.record, work))
            group.create_task(_watch_processes(world, outcome))
            begun = time.monotonic()
            await asyncio.sleep(plan.quiet_s)
            calm_until = time.monotonic()
            hostile = group.create_task(_hostile(world).run()) if plan.has_hostile_clients else None
            outcome.times = await _faults(world)
            ended = time.monotonic()
            world.stop.set()
            if hostile:
                await hostile
        outcome.quiet = world.record.seconds(begun, calm_until)
        outcome.storm = world.record.seconds(calm_until, ended)
        outcome.lost = [
            problem
            for check in (
                _check_registry(world, told, watcher),
                _check_contention(history),
                _check_events(world, history),
                _check_jobs(world, jobs),
            )
            if (problem := await _problem(check))
        ]
        following.cancel()
        outcome.faults = world.record.faults()
        outcome.acknowledged = {
            "versions": len(told.made),
            "alias moves": len(told.moved),
            "metrics": len(told.measured),
            "uploads": len(told.uploaded),
            "contended calls": len(history.operations),
            "events": len(contention.recorded(history)) * SIZE,
            "jobs": len(jobs),
        }
        return outcome


async def _world(plan: Plan, home: Path, stack: AsyncExitStack) -> tuple[World, list[str]]:
    skipped: list[str] = []
    disk = None
    folder = home / "disk"
    try:
        disk = stack.enter_context(mounted(folder, DISK_MIB))
    except CannotMount as error:
        skipped.append(f"no full disk: {error}")
    # People keep the address of the router over its restarts.
    environ = {"NEUROWEAVER_SERVING_PORT": str(free_port()), "NEUROWEAVER_DEPLOYMENT_BACKEND": "local"}
    crash = None
    if plan.is_postgresql:
        url, crash = stack.enter_context(faults.crashing_postgres())
        environ["NEUROWEAVER_DATABASE_URL"] = url
    models.tiny_base(folder / "models" / "tiny", context=2048)
    running = await asyncio.to_thread(stack.enter_context, mesh(folder, **environ))

    async def stub(service: str, made_of: Any) -> Any:
        channel = grpc.aio.insecure_channel(running.addresses[service], options=faults.OPTIONS)
        return made_of(await stack.enter_async_context(channel))

    world = World(
        plan,
        running,
        Record(grace_s=plan.timeout_s / 2),
        crash,
        disk,
        registry=await stub("registry", RegistryServiceStub),
        experiment=await stub("experiment", ExperimentServiceStub),
        deployer=await stub("deployer", DeployerServiceStub),
        trainer=await stub("trainer", TrainerServiceStub),
    )
    return world, skipped


async def _furnish(world: World, home: Path) -> None:
    """Models, an experiment and a deployment to work on."""
    await faults.register(world.running.addresses["registry"])
    contended = registry_pb2.RegisterModelRequest(model=registry_pb2.Model(model_id=contention.MODEL))
    await world.registry.RegisterModel(contended)
    adapter = await asyncio.to_thread(
        models.adapter, world.running.home / "models" / "tiny", home / "adapter", seed=1
    )
    await publish_adapters(world.registry, world.running.home / "models" / "tiny", adapter, model_id=SERVED)
    made = experiment_pb2.CreateExperimentRequest(test_id="t", spec=spec(metrics=[metric("score")]))
    await world.experiment.CreateExperiment(made)
    await world.experiment.StartExperiment(experiment_pb2.StartExperimentRequest(test_id="t"))
    world.now_us = time.time_ns() // 1000
    await world.experiment.RecordEvents(iter([exposures(world.now_us)]))
    await world.deployer.DeployModel(deployer_pb2.DeployModelRequest(model_id=SERVED, spec=SPEC))

    async def is_ready() -> Any:
        seen = await world.deployer.GetDeployment(deployer_pb2.GetDeploymentRequest(model_id=SERVED))
        return seen if seen.state == deployer_pb2.DEPLOYMENT_STATE_READY else None

    world.endpoint = (await wait_until(is_ready, _PATIENCE_S)).endpoint


def _innocents(
    world: World, history: contention.History, told: faults.Told, jobs: list[str]
) -> list[Awaitable[None]]:
    plan = world.plan
    numbers = itertools.count(1)
    address = world.running.addresses["registry"]
    work: list[Any] = [
        faults.Writer(f"w{number}", address, told, world.stop, random.Random(plan.seed + number)).run()
        for number in range(2)
    ]
    work += [contention.contend(world.registry, history, number, world.stop) for number in range(3)]
    work += [_feed(world, history, numbers) for _ in range(2)]
    work += [_probe(world, *probe) for probe in _probes(world)]
    work.append(_converse(world))
    if plan.has_jobs:
        work.append(_train(world, jobs))
    return work


async def _to_the_end(record: Record, work: Awaitable[None]) -> None:
    """What one caller is refused is noted; the others go on."""
    try:
        await work
    except (grpc.RpcError, AssertionError) as error:
        record.gave_up.append(str(error)[:300])


def _probes(world: World) -> list[tuple[str, str, Callable[[], Awaitable[Any]]]]:
    """Calls that nobody answers slowly: by their time the storm is measured."""
    timeout_s = world.plan.timeout_s
    model = registry_pb2.GetModelRequest(model_id=contention.MODEL)
    assign = experiment_pb2.AssignVariantRequest(test_id="t", unit_id="u1")
    deployment = deployer_pb2.GetDeploymentRequest(model_id=SERVED)
    listed = trainer_pb2.ListTrainingJobsRequest(page_size=10)
    return [
        ("GetModel", "registry", lambda: world.registry.GetModel(model, timeout=timeout_s)),
        ("AssignVariant", "experiment", lambda: world.experiment.AssignVariant(assign, timeout=timeout_s)),
        ("GetDeployment", "deployer", lambda: world.deployer.GetDeployment(deployment, timeout=timeout_s)),
        ("ListTrainingJobs", "trainer", lambda: world.trainer.ListTrainingJobs(listed, timeout=timeout_s)),
    ]


async def _probe(world: World, kind: str, service: str, send: Callable[[], Awaitable[Any]]) -> None:
    while await until(world.stop, 0.1):
        await world.record.call(kind, service, send)


async def _feed(world: World, history: contention.History, numbers: Any) -> None:
    """Batches of samples, every fifth by two callers at once."""
    while await until(world.stop, 0.1):
        number = next(numbers)
        times = 2 if number % 5 == 0 else 1
        await asyncio.gather(
            *(contention.record(world.experiment, history, number, world.now_us) for _ in range(times))
        )


async def _converse(world: World) -> None:
    question = {
        "model": SERVED,
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0,
        "max_tokens": 8,
    }
    async with httpx2.AsyncClient(trust_env=False, timeout=3 * world.plan.timeout_s) as client:
        while await until(world.stop, 0.3):
            begun = time.monotonic()
            try:
                answer = await client.post(f"{world.endpoint}/chat/completions", json=question)
            except httpx2.TransportError as error:
                world.record.answered("completion", "deployer", begun, "UNAVAILABLE", repr(error))
                continue
            code = {200: OK, 503: "UNAVAILABLE"}.get(answer.status_code, str(answer.status_code))
            world.record.answered("completion", "deployer", begun, code, answer.text if code != OK else "")


async def _train(world: World, jobs: list[str]) -> None:
    """One short job after the other; each is told to go on after a failure that says it can."""
    while not world.stop.is_set():
        request = trainer_pb2.StartTrainingRequest(
            config=trainer_pb2.TrainingConfig(
                model_name=f"trained-{len(jobs)}",
                base_model="tiny",
                specialization="service_advisor",
                dataset_path="builtin:automotive",
                lora_r=4,
                epochs=0.2,
                batch_size=2,
                max_seq_length=256,
                enable_rlaif=False,
            ),
            request_id=f"job-{len(jobs)}",
        )
        patient = faults.Told()
        job = await patient.until_answered(partial(world.trainer.StartTraining, request, timeout=30))
        jobs.append(job.job_id)
        while await until(world.stop, 1.0):
            seen = await patient.until_answered(partial(_job, world, job.job_id))
            if seen.state == trainer_pb2.JOB_STATE_SUCCEEDED or not await _gone_on(world, seen):
                break


async def _job(world: World, job_id: str) -> trainer_pb2.TrainingJob:
    return await world.trainer.GetTrainingJob(trainer_pb2.GetTrainingJobRequest(job_id=job_id), timeout=10)


async def _gone_on(world: World, job: trainer_pb2.TrainingJob) -> bool:
    """Whether a job still works; one that a full disk ended is told to go on."""
    if job.state in DONE and job.failure.is_resumable:
        request = trainer_pb2.ResumeTrainingRequest(
            job_id=job.job_id, request_id=f"again-{time.monotonic_ns()}"
        )
        await faults.Told().until_answered(partial(world.trainer.ResumeTraining, request, timeout=30))
        return True
    return job.state not in DONE


def _hostile(world: World) -> Hostile:
    return Hostile(
        world.running.addresses,
        world.endpoint,
        (SERVED, "1.0.0", "adapter/adapter_model.safetensors"),
        world.record,
        world.stop,
    )


async def _faults(world: World) -> dict[str, int]:
    """Each kind once in a random order, then any of them, until the time is over; ends with all services well."""
    drawn = random.Random(world.plan.seed)
    kinds: dict[str, Callable[[], Awaitable[None]]] = {
        f"kill {service}": lambda service=service: _kill(world, service) for service in SERVICES
    }
    if world.crash_database:
        kinds["crash of the database"] = lambda: _crash(world)
    if world.disk:
        kinds["full disk"] = lambda: _fill(world, drawn.uniform(1, 3))
    times = dict.fromkeys(kinds, 0)
    rest = drawn.sample(sorted(kinds), len(kinds))
    give_up = time.monotonic() + world.plan.storm_s
    while rest or time.monotonic() < give_up:
        await asyncio.sleep(drawn.uniform(0.2, 1.0) * world.plan.pause_s)
        kind = rest.pop() if rest else drawn.choice(sorted(kinds))
        await kinds[kind]()
        times[kind] += 1
    await asyncio.sleep(world.plan.pause_s)
    return times


async def _kill(world: World, service: str) -> None:
    world.is_being_killed.add(service)
    with world.record.outage(f"kill {service}", service):
        process = world.running.processes.pop(service, None)
        if process:
            process.kill()
            await asyncio.to_thread(process.wait)
        await _start(world, service)
        if service == "deployer" and world.endpoint:
            # It works again once its predecessor's lease is over.
            await wait_until(partial(_is_answering, world.endpoint), _PATIENCE_S)
    world.is_being_killed.discard(service)


async def _is_answering(endpoint: str) -> bool:
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        try:
            return (await client.get(f"{endpoint}/models")).is_success
        except httpx2.TransportError:
            return False


async def _start(world: World, service: str) -> None:
    """Until it stands: what stops it from starting may pass."""
    for _ in range(20):
        try:
            await asyncio.to_thread(world.running.start, service)
        except AssertionError:
            world.record.died.append(f"{service} at its start: {world.running.log(service)[-300:]}")
            await asyncio.sleep(1.0)
        else:
            return
    raise AssertionError(f"{service} does not come back: {world.running.log(service)[-4000:]}")


async def _crash(world: World) -> None:
    assert world.crash_database is not None
    with world.record.outage("crash of the database", *SERVICES):
        await world.crash_database()
        await _all_healthy(world)


async def _fill(world: World, seconds: float) -> None:
    assert world.disk is not None
    with world.record.outage("full disk", *SERVICES):
        await asyncio.to_thread(world.disk.fill)
        await asyncio.sleep(seconds)
        world.disk.empty()
        await _all_healthy(world)


async def _all_healthy(world: World) -> None:
    for service in SERVICES:
        await wait_until(partial(_is_healthy, world.running.addresses[service]), _PATIENCE_S)


async def _is_healthy(address: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=5
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _watch_processes(world: World, outcome: Outcome) -> None:
    """Starts what ended by itself, which is a fault; notes the memory of all every two seconds."""
    for tick in itertools.count():
        if not await until(world.stop, 0.5):
            return
        for service, process in list(world.running.processes.items()):
            if service in world.is_being_killed:
                continue
            if process.poll() is not None:
                world.record.died.append(f"{service} ({process.returncode})")
                await _kill(world, service)
            elif tick % 4 == 0:
                with contextlib.suppress(psutil.Error):
                    resident = psutil.Process(process.pid).memory_info().rss
                    outcome.resident.setdefault(service, []).append(resident)


async def _problem(check: Awaitable[None]) -> str:
    try:
        await check
    except AssertionError as error:
        return str(error)[:2000] or repr(error)
    return ""


async def _check_registry(world: World, told: faults.Told, watcher: faults.Watcher) -> None:
    head = (await world.registry.VerifyAudit(registry_pb2.VerifyAuditRequest())).head
    await watcher.until(head.sequence)
    await faults.verify(world.running.addresses["registry"], told, watcher)


async def _check_contention(history: contention.History) -> None:
    unexplained = await asyncio.to_thread(history.unexplained)
    assert not unexplained, f"no order explains what callers saw of {unexplained}"


async def _check_events(world: World, history: contention.History) -> None:
    numbers = contention.recorded(history)
    request = experiment_pb2.RecomputeResultsRequest(test_id="t")
    recomputed = await world.experiment.RecomputeResults(request)
    assert recomputed.is_equal, list(recomputed.differences)
    assert recomputed.events - UNITS == len(numbers) * SIZE, (recomputed.events, len(numbers))
    results = await world.experiment.AnalyzeExperiment(experiment_pb2.AnalyzeExperimentRequest(test_id="t"))
    assert sums(results) == expected(numbers)


async def _check_jobs(world: World, jobs: list[str]) -> None:
    """Every job ends well, the last one after the storm."""

    async def ended(job_id: str) -> trainer_pb2.TrainingJob | None:
        job = await _job(world, job_id)
        return None if await _gone_on(world, job) else job

    for job_id in jobs:
        job = await wait_until(partial(ended, job_id), _PATIENCE_S)
        assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, f"{job_id}: {job.failure}"
