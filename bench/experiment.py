"""What an analysis, an assignment and a watch of results cost the Experiment service.

    python bench/experiment.py [--rounds 20] [--calls 500] [--watchers 1000] [--events 10000 1000000 10000000]

The analysis is that of 4 variants and 20 metrics, read from an SQLite file after so many events were taken
in, a tenth as many units. For AssignVariant a client calls
three processes by turns, so that all see the same machine: an echo of the same answer without the mesh, the
same with the mesh's interceptor, and the service itself over an SQLite file. Then so many watches of one
experiment are opened while its results move every two seconds. Linux only: CPU time is read from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import uvloop

from neuroweaver.experiment.analysis.report import report
from neuroweaver.experiment.conclusion.registry import Releases
from neuroweaver.experiment.control.evaluators import Evaluators
from neuroweaver.experiment.intake import retention, sketching, snapshots
from neuroweaver.experiment.intake.committer import Committer
from neuroweaver.experiment.intake.events import batches_of
from neuroweaver.experiment.intake.projection import Projections
from neuroweaver.experiment.intake.readings import Plan
from neuroweaver.experiment.results.cache import ResultsCache
from neuroweaver.experiment.rpc import server as experiment_rpc
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate
from neuroweaver.mesh.server import logs
from neuroweaver.mesh.server.drain import Drain
from neuroweaver.mesh.server.interceptors import server_interceptor
from neuroweaver.mesh.wire import telemetry
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.clock import microseconds as time_of
from neuroweaver.v1 import experiment_pb2 as pb
from neuroweaver.v1 import experiment_pb2_grpc as rpc

# In place of this folder, whose registry.py would hide the tests' folder of that name.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from experiment.ingesting import NOW, PROJECT, START, Intake, intake

KINDS = ("bare", "meshed", "service")


def spec(variants: int, metrics: int) -> pb.ExperimentSpec:
    names = ["control", *(f"treatment-{index}" for index in range(1, variants))]
    ids = [f"metric_{index}" for index in range(metrics)]
    return pb.ExperimentSpec(
        title="bench",
        variants=[pb.ExperimentVariant(variant_id=name, weight=1 / variants) for name in names],
        control_variant_id="control",
        metrics=[
            pb.ExperimentMetric(
                metric_id=each,
                goal=pb.METRIC_GOAL_INCREASE,
                mean=pb.MeanMetric(source=pb.EventSource(event_name=each)),
            )
            for each in ids
        ],
        target_metric_id=ids[0],
        guardrails=[pb.Guardrail(metric_id=each, margin=pb.EffectSize(relative=0.02)) for each in ids[1:6]],
    )


async def analysis(rounds: int, events: int) -> None:
    """Reads what is stored after so many events, and makes the results of it."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/experiment.db"
        async with intake(url, spec(4, 20)) as opened:
            started = time.perf_counter()
            await _fill(opened, events)
            filled_s = time.perf_counter() - started
            waits = []
            for _ in range(rounds + 3):
                started = time.perf_counter()
                async with opened.store.read(PROJECT) as experiments:
                    experiment = await experiments.experiment("t")
                    snapshot = await snapshots.load(experiments.connection, PROJECT, "t")
                snapshot = await sketching.completed(opened.store, opened.projections, experiment, snapshot)
                found = report(experiment, snapshot, now=NOW)
                waits.append((time.perf_counter() - started) * 1e3)
            await retention.keep_checkpoint(opened.store, opened.projections, experiment)
            await _fill(opened, 10_000, first=events)
            fresh = Projections()
            started = time.perf_counter()
            async with fresh.hold(PROJECT, ["t"]) as held, opened.store.read(PROJECT) as experiments:
                plan = Plan(experiment.spec)
                projection = await held.current(experiments.connection, PROJECT, experiment, plan)
            begun_s = time.perf_counter() - started
        low, middle, high = statistics.quantiles(waits[3:], n=4)
        assert found.results.events.accepted == events
        print(
            f"analysis after {events:,} events: {middle:.1f} ms (quartiles {low:.1f} and {high:.1f}); "
            f"taken in at {events / filled_s:,.0f} events/s; a process that begins anew is ready after "
            f"{begun_s:.2f} s, with {projection.nbytes / 2**20:.0f} MiB of {len(projection.table):,} units; "
            f"file {_size(folder) / 2**20:.0f} MiB",
            flush=True,
        )


def _size(folder: str) -> int:
    return Path(folder, "experiment.db").stat().st_size


async def _fill(opened: Intake, events: int, first: int = 0) -> None:
    """A tenth are exposures, one a unit; the others are spread over the metrics."""
    committer = Committer(opened.database, opened.projections, lambda: NOW, opened.store.topics)
    names = [f"metric_{index}" for index in range(20)]
    variants = ["control", "treatment-1", "treatment-2", "treatment-3"]
    times = [(time_of(START) + 3_600_000_000)] * 1000
    units = max(1000, events // 10)
    drawn = np.random.default_rng(1)
    under_way: set[asyncio.Future[object]] = set()
    for start in range(first, first + events, 1000):
        ids = [f"{start + index:010d}" for index in range(1000)]
        if start < units:
            made = pb.EventColumns(
                event_ids=ids,
                unit_ids=[f"user-{start + index}" for index in range(1000)],
                event_times_us=times,
                exposures=pb.ExposureColumns(
                    variant_ids=variants, assigned=[(start + index) % 4 for index in range(1000)]
                ),
            )
        else:
            made = pb.EventColumns(
                event_ids=ids,
                unit_ids=[f"user-{unit}" for unit in drawn.integers(0, units, 1000).tolist()],
                event_times_us=times,
                metrics=pb.MetricColumns(
                    names=names,
                    name_indexes=drawn.integers(0, 20, 1000).tolist(),
                    values=drawn.normal(10, 1, 1000).tolist(),
                ),
            )
        batches = batches_of(pb.RecordEventsRequest(test_id="t", columns=made))
        under_way.add(committer.put(PROJECT, batches))
        if len(under_way) >= 32:
            _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*under_way)


class Echo(rpc.ExperimentServiceServicer):
    async def AssignVariant(self, request, _context):  # noqa: N802
        return pb.VariantAssignment(
            test_id=request.test_id, unit_id=request.unit_id, variant_id="control", phase=1, config_sequence=2
        )


async def serve(kind: str) -> None:
    logs.configure("bench", log_format="json")
    telemetry.start("bench")
    interceptors = [] if kind == "bare" else [server_interceptor(Drain(), deadline_s=60, silence_s=60)]
    server = grpc.aio.server(interceptors=interceptors)
    with tempfile.TemporaryDirectory() as folder:
        servicer: rpc.ExperimentServiceServicer = Echo()
        if kind == "service":
            database = Database(f"sqlite:///{folder}/experiment.db", schema="experiment")
            await migrate(database, "neuroweaver.experiment")
            store, projections = Store(database), Projections()
            servicer = experiment_rpc.servicer(
                store,
                Evaluators(store),
                Releases(None),
                Committer(database, projections, store.clock, store.topics),
                ResultsCache(store, projections),
            )
        rpc.add_ExperimentServiceServicer_to_server(servicer, server)
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        await server.start()
        gc.freeze()  # as mesh.serve does
        await server.wait_for_termination()


@contextmanager
def servers(*kinds: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, __file__, "--serve"]
        started = {
            kind: subprocess.Popen([*command, kind], stdout=subprocess.PIPE, stderr=log) for kind in kinds
        }
        try:
            yield started
        finally:
            for server in started.values():
                server.terminate()
                server.wait()


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process so far."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


async def measure(pid: int, stub, calls: int) -> tuple[float, float]:
    """Microseconds an RPC: the server's CPU, and the time from call to answer at the median."""
    before, waits = cpu_s(pid), []
    for index in range(calls):
        request = pb.AssignVariantRequest(test_id="t", unit_id=f"unit-{index}")
        started = time.perf_counter()
        await stub.AssignVariant(request)
        waits.append(time.perf_counter() - started)
    return (cpu_s(pid) - before) / calls * 1e6, statistics.median(waits) * 1e6


async def assignments(stubs, started, rounds: int, calls: int) -> None:
    found = {kind: [] for kind in started}
    for kind, server in started.items():
        await measure(server.pid, stubs[kind], calls)  # warm
    for _ in range(rounds):
        for kind, server in started.items():
            found[kind].append(await measure(server.pid, stubs[kind], calls))
    for kind, pairs in found.items():
        cpu, wait = (statistics.median(column) for column in zip(*pairs, strict=True))
        least = min(pair[0] for pair in pairs)
        print(f"{kind:<8}{cpu:5.0f} µs CPU an RPC (least {least:.0f}), {wait:5.0f} µs from call to answer")
    for base in ("bare", "meshed"):
        ratios = [one[0] / other[0] for other, one in zip(found[base], found["service"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"service / {base}: {middle:.2f} (quartiles {low:.2f} and {high:.2f} of {len(ratios)} rounds)")


def events(round_number: int, units: int) -> list[pb.RecordEventsRequest]:
    requests = []
    now_us = time.time_ns() // 1000
    for index, variant in enumerate(("control", "treatment-1", "treatment-2", "treatment-3")):
        names = [f"{variant}-{round_number}-{unit}" for unit in range(units)]
        exposures = pb.ExposureColumns(variant_ids=[variant], assigned=[0] * units)
        times = [now_us] * units
        requests.append(
            pb.EventColumns(event_ids=names, unit_ids=names, event_times_us=times, exposures=exposures)
        )
        values = np.random.default_rng(10 * round_number + index).normal(10, 1, units)
        samples = pb.MetricColumns(names=["metric_0"], name_indexes=[0] * units, values=values)
        ids = [f"m-{name}" for name in names]
        requests.append(pb.EventColumns(event_ids=ids, unit_ids=names, event_times_us=times, metrics=samples))
    return [pb.RecordEventsRequest(test_id="t", columns=each) for each in requests]


class Arrivals:
    """When each of so many watches heard of results with so many units."""

    def __init__(self, watchers: int) -> None:
        self._watchers = watchers
        self._count: dict[int, int] = {}
        self._last: dict[int, asyncio.Future[float]] = {}

    def note(self, units: int) -> None:
        self._count[units] = self._count.get(units, 0) + 1
        if self._count[units] == self._watchers:
            self.last(units).set_result(time.perf_counter())

    def last(self, units: int) -> asyncio.Future[float]:
        return self._last.setdefault(units, asyncio.get_running_loop().create_future())


async def watches(stub, pid: int, watchers: int, rounds: int) -> None:
    arrivals = Arrivals(watchers)

    async def watch() -> None:
        async for event in stub.WatchResults(pb.WatchResultsRequest(test_id="t")):
            if event.HasField("results"):
                arrivals.note(event.results.variants[0].units)

    tasks = [asyncio.create_task(watch()) for _ in range(watchers)]
    await arrivals.last(0)
    before, begun, lags = cpu_s(pid), time.perf_counter(), []
    for number in range(1, rounds + 1):
        await stub.RecordEvents(iter(events(number, 100)))
        recorded = time.perf_counter()
        lags.append(await arrivals.last(100 * number) - recorded)
        await asyncio.sleep(max(0.0, 2 - (time.perf_counter() - recorded)))
    cpu, length = cpu_s(pid) - before, time.perf_counter() - begun
    for task in tasks:
        task.cancel()
    print(
        f"{watchers} watches of results that move every {length / rounds:.1f} s: {cpu / length:.2f} s of the"
        f" server's CPU a second; the last watch hears {statistics.median(lags):.2f} s after the commit"
        f" (longest {max(lags):.2f} s)"
    )


async def run(started, options) -> None:
    stubs = {}
    for kind, server in started.items():
        opened = channel(f"127.0.0.1:{int(server.stdout.readline())}")
        stubs[kind] = rpc.ExperimentServiceStub(opened)
    stub = stubs["service"]
    made = spec(4, 20)
    made.min_units_per_variant = 1000
    await stub.CreateExperiment(pb.CreateExperimentRequest(test_id="t", spec=made))
    await stub.StartExperiment(pb.StartExperimentRequest(test_id="t"))
    await assignments(stubs, started, options.rounds, options.calls)
    await watches(stub, started["service"].pid, options.watchers, 10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--watchers", type=int, default=1000)
    parser.add_argument("--events", type=int, nargs="*", default=[10_000, 1_000_000, 10_000_000])
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(options.serve))
    else:
        print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
        for number in options.events:
            uvloop.run(analysis(options.rounds, number))
        with servers(*KINDS) as all_of_them:
            uvloop.run(run(all_of_them, options))
