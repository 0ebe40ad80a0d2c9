"""What the largest requests that are allowed cost a service's event loop, its handlers included.

    python bench/large_requests.py

Real servers over SQLite, each request twice, the better of both: the CPU time of the loop's thread, and the
longest that the loop stood still while another thread sent the request. The client's own work, and that of
other threads, holds Python's lock for a part of that time.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
import grpc
import uvloop
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from neuroweaver.experiment import __main__ as experiment
from neuroweaver.experiment.conclusion.registry import Releases
from neuroweaver.experiment.settings import ExperimentSettings
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate
from neuroweaver.mesh.server.serve import running
from neuroweaver.mesh.wire.channel import MAX_MESSAGE_BYTES
from neuroweaver.registry import __main__ as registry
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.v1 import experiment_pb2 as ep
from neuroweaver.v1 import registry_pb2 as rp
from neuroweaver.v1.experiment_pb2_grpc import ExperimentServiceStub
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub

# In the place of this folder, whose registry.py and experiment.py are others.
sys.path[0] = str(Path(__file__).parents[1] / "tests")
from experiment.serving import spec  # noqa: E402
from registry.calls import create, register, upload  # noqa: E402

TICK_S = 0.002
OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)


def of_registry(file: rp.Artifact) -> Iterator[tuple[str, str, Message]]:
    version = rp.CreateModelVersionRequest(model_id="advisor")
    version.artifacts.extend(
        rp.Artifact(path=f"{index}.json", digest=file.digest, size_bytes=file.size_bytes)
        for index in range(1000)
    )
    yield "1000 files", "CreateModelVersion", version
    measured = rp.UpdateMetricsRequest(model_id="advisor", version="0.0.1")
    for index in range(1000):
        measured.metrics[f"{index}"].samples.extend([0.123456789012345 + index] * 50)
    yield "50,000 samples", "UpdateMetrics", measured
    yield "as read", "GetModelVersion", rp.GetModelVersionRequest(model_id="advisor", version="0.0.1")
    large = rp.CreateModelVersionRequest(model_id="advisor")
    large.config.update({f"k{index}": [0.5] * 9000 for index in range(5)})
    yield "45,000 values", "CreateModelVersion", large
    large.config.update({f"k{index}": [0.5] * 9000 for index in range(7)})
    yield "too many values", "CreateModelVersion", large
    model = rp.RegisterModelRequest(
        model=rp.Model(model_id="many", tags={f"t{i}": "" for i in range(20_000)})
    )
    yield "20,000 tags", "RegisterModel", model


def of_experiment() -> Iterator[tuple[str, str, Message]]:
    for count in (2000, 70_000):
        made = ep.CreateExperimentRequest(test_id=f"t{count}", spec=spec())
        rule = made.spec.targeting.add()
        for begin in range(0, count, 1000):
            if len(rule.conditions) == 32:
                rule = made.spec.targeting.add()
            condition = rule.conditions.add(attribute="a", operator=ep.TARGETING_OPERATOR_NOT_IN)
            for number in range(begin, begin + 1000):
                condition.values.add(string_value=f"{number}")
        yield f"{count} values", "CreateExperiment", made
    yield "start", "StartExperiment", ep.StartExperimentRequest(test_id="t2000")
    batch = ep.BatchAssignVariantsRequest()
    for unit in range(1000):
        attributes = batch.requests.add(test_id="t2000", unit_id=f"{unit}").attributes
        attributes["a"].string_value = "elsewhere"
        for index in range(63):
            attributes[f"name{index}"].number_value = index
    yield "64,000 attributes", "BatchAssignVariants", batch


async def tick(gaps: list[float]) -> None:
    last = time.perf_counter()
    while True:
        await asyncio.sleep(TICK_S)
        now = time.perf_counter()
        gaps.append(now - last - TICK_S)
        last = now


async def tried(address: str, method: str, data: bytes) -> tuple[float, float, str]:
    """Seconds of the loop's CPU, the longest standstill, and the answer."""

    def send() -> str:
        with grpc.insecure_channel(address, options=OPTIONS) as channel:
            try:
                return f"{len(channel.unary_unary(method)(data, timeout=120)):,} bytes"
            except grpc.RpcError as error:
                return f"{error.code().name}: {error.details()}"[:90]

    gaps: list[float] = []
    ticking = asyncio.create_task(tick(gaps))
    await asyncio.sleep(10 * TICK_S)
    gaps.clear()
    begun = time.thread_time()
    answer = await asyncio.to_thread(send)
    cpu_s = time.thread_time() - begun
    ticking.cancel()
    return cpu_s, max(gaps), answer


async def shown(service: str, address: str, requests: Iterator[tuple[str, str, Message]]) -> None:
    for name, method, request in requests:
        data = request.SerializeToString()
        tries = [await tried(address, f"/neuroweaver.v1.{service}Service/{method}", data) for _ in range(2)]
        cpu_s, gap_s = (min(each) for each in list(zip(*tries, strict=True))[:2])
        print(
            f"{method:20} {name:18} {len(data) / 1024:6.0f} KiB: loop {1000 * cpu_s:4.0f} ms, "
            f"longest standstill {1000 * gap_s:4.0f} ms; {tries[0][2]}",
            flush=True,
        )


@asynccontextmanager
async def served(name: str, settings: Any, service: Any) -> AsyncIterator[str]:
    database = Database(f"sqlite:///{settings.home / name}.db", schema=name)
    await migrate(database, f"neuroweaver.{name}")
    async with running(service(database), settings, registry=CollectorRegistry()) as server:
        yield server.address


async def main(home: Path) -> None:
    places = {"home": home, "port": 0, "metrics_port": 0, "database_url": "", "drain_s": 0.0}
    settings = RegistrySettings(**places)
    async with served("registry", settings, lambda database: registry.service(database, settings)) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = RegistryServiceStub(channel)
            await register(stub)
            file = await upload(stub, b"{}", "x.json")
            await create(stub, "0.0.1")
            await stub.GetModelVersion(rp.GetModelVersionRequest(model_id="advisor", version="0.0.1"))
        await shown("Registry", address, of_registry(file))
        releases = Releases(RegistryServiceStub(grpc.aio.insecure_channel(address)))
        async with served(
            "experiment",
            ExperimentSettings(**places),
            lambda database: experiment.service(database, releases),
        ) as other:
            async with grpc.aio.insecure_channel(other) as channel:
                await ExperimentServiceStub(channel).ListExperiments(ep.ListExperimentsRequest())
            await shown("Experiment", other, of_experiment())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="nw-large-") as folder:
        uvloop.run(main(Path(folder)))
