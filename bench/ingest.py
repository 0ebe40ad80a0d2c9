"""How many events a second become durable and counted.

    python bench/ingest.py [--batches 1000] [--units 200000] [--only store|grpc|rules]
                           [--database sqlite|postgresql] [--url postgresql://...]

Batches of 1000 measurements in columns, of units exposed before; a mean, a proportion and a ratio metric.
grpc: the service as a process of its own, one stream from this process, acknowledged after the commit.
store: the committer alone, in this process, requests already read into batches. rules: what it costs to read
one request, and to check the rules of its messages. PostgreSQL is started here, with fsync.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import uvloop

from neuroweaver.experiment.intake.committer import Committer
from neuroweaver.experiment.intake.events import Batch, batches_of
from neuroweaver.local.processes import Fleet, free_ports
from neuroweaver.mesh.server.validation import _validator
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.clock import utc_now
from neuroweaver.v1 import experiment_pb2 as pb
from neuroweaver.v1.experiment_pb2_grpc import ExperimentServiceStub

# In place of this folder, whose registry.py would hide the tests' folder of that name.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import postgres
from experiment.ingesting import PROJECT, Intake, intake
from experiment.serving import metric, spec

SIZE = 1000
PARTS = 5


def request(number: int, units: int, now_us: int) -> pb.RecordEventsRequest:
    made = random.Random(number)
    return pb.RecordEventsRequest(
        test_id="t",
        columns=pb.EventColumns(
            event_ids=[f"{number:08d}-{index:06d}" for index in range(SIZE)],
            unit_ids=[f"user-{made.randrange(units)}" for _ in range(SIZE)],
            event_times_us=[now_us + index for index in range(SIZE)],
            metrics=pb.MetricColumns(
                names=["score", "click"],
                name_indexes=[made.randrange(2) for _ in range(SIZE)],
                values=[made.lognormvariate(0, 1) for _ in range(SIZE)],
            ),
        ),
    )


def exposures(start: int, units: int, now_us: int) -> pb.RecordEventsRequest:
    names = range(start, min(units, start + SIZE))
    return pb.RecordEventsRequest(
        test_id="t",
        columns=pb.EventColumns(
            event_ids=[f"e{unit}" for unit in names],
            unit_ids=[f"user-{unit}" for unit in names],
            event_times_us=[now_us] * len(names),
            exposures=pb.ExposureColumns(
                variant_ids=["control", "tuned"], assigned=[unit % 2 for unit in names]
            ),
        ),
    )


def metrics() -> pb.ExperimentSpec:
    def source(name: str) -> pb.EventSource:
        return pb.EventSource(event_name=name)

    ratio = pb.RatioMetric(numerator=source("score"), denominator=source("click"))
    return spec(
        metrics=[
            metric("score"),
            metric("clicked", proportion=pb.ProportionMetric(event_name="click")),
            metric("rate", ratio=ratio),
        ]
    )


def in_us(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def told(where: str, events: int, started: tuple[float, float]) -> None:
    wall_s, cpu_s = time.perf_counter() - started[0], time.process_time() - started[1]
    print(f"{where:18} {events / wall_s:10,.0f} events/s, {cpu_s / events * 1e6:6.1f} us of CPU an event")


def now_s() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


async def through_store(where: str, opened: Intake, count: int, units: int) -> None:
    committer = Committer(opened.database, opened.projections, lambda: opened.now, opened.store.topics)
    past = in_us(opened.now - timedelta(days=1))
    await asyncio.gather(*[committer.put(PROJECT, each) for each in _exposed(units, past)])
    read = [batches_of(request(number, units, past + 1)) for number in range(count)]
    started = now_s()
    under_way: set[asyncio.Future[object]] = set()
    for each in read:
        under_way.add(committer.put(PROJECT, each))
        if len(under_way) >= 32:
            _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*under_way)
    told(where, count * SIZE, started)


def _exposed(units: int, past: int) -> Iterator[list[Batch]]:
    for first in range(0, units, SIZE):
        yield batches_of(exposures(first, units, past))


async def through_grpc(where: str, database_url: str, folder: Path, count: int, units: int) -> None:
    environ = {
        "NEUROWEAVER_HOME": str(folder),
        "NEUROWEAVER_EXPERIMENT_PORT": str(free_ports(1)[0]),
        "NEUROWEAVER_EXPERIMENT_METRICS_PORT": str(free_ports(1)[0]),
        "NEUROWEAVER_DATABASE_URL": database_url if "postgres" in database_url else "",
    }
    with Fleet(os.environ | environ, ["experiment"]) as fleet:
        fleet.start()
        fleet.wait_until_healthy()
        async with channel(fleet.places[0].address) as opened:
            stub = ExperimentServiceStub(opened)
            await stub.CreateExperiment(pb.CreateExperimentRequest(test_id="t", spec=metrics()))
            await stub.StartExperiment(pb.StartExperimentRequest(test_id="t"))
            now = in_us(utc_now())
            await stub.RecordEvents(exposures(first, units, now) for first in range(0, units, SIZE))
            requests = [request(number, units, now + 1) for number in range(count)]
            server = psutil.Process(fleet.pid("experiment"))
            for part in range(PARTS):
                some = requests[part * count // PARTS : (part + 1) * count // PARTS]
                started, spent = time.perf_counter(), sum(server.cpu_times()[:2])
                answer = await stub.RecordEvents(iter(some))
                wall_s, cpu_s = time.perf_counter() - started, sum(server.cpu_times()[:2]) - spent
                if answer.accepted != len(some) * SIZE:
                    raise RuntimeError(f"only {answer.accepted} were accepted")
                rate, cpu_us = answer.accepted / wall_s, cpu_s / answer.accepted * 1e6
                print(f"{where:18} {rate:10,.0f} events/s, {cpu_us:6.1f} us of the server's CPU an event")
            print(f"{where:18} {server.memory_info().rss >> 20:10,} MiB of memory in the end")


def rules() -> None:
    now = in_us(utc_now())
    asked = [request(number, 1000, now) for number in range(20)]
    sent = [each.SerializeToString() for each in asked]
    for name, work in (
        ("decode", lambda: [pb.RecordEventsRequest.FromString(each) for each in sent]),
        ("check the rules", lambda: [_validator().collect_violations(each) for each in asked]),
        ("read into columns", lambda: [batches_of(each) for each in asked]),
    ):
        work()
        started = time.perf_counter()
        work()
        spent_ms = (time.perf_counter() - started) / len(asked) * 1000
        print(f"{name:20} {spent_ms:8.2f} ms a batch {spent_ms * 1000 / SIZE:8.2f} us an event")


@asynccontextmanager
async def database(kind: str, url: str | None) -> AsyncIterator[tuple[str, Path]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if kind == "sqlite":
            yield f"sqlite:///{folder / 'experiment.db'}", folder
            return
        if url is not None:
            yield url, folder
            return
        binaries = postgres.binaries()
        if binaries is None:
            raise SystemExit("PostgreSQL's server is not installed")
        yield stack.enter_context(postgres.server(binaries, is_durable=True)), folder


async def main(options: argparse.Namespace) -> None:
    if options.only in {None, "rules"}:
        rules()
    for kind in ["sqlite", "postgresql"] if options.database is None else [options.database]:
        if options.only in {None, "store"}:
            async with database(kind, options.url) as (url, _), intake(url, metrics()) as opened:
                await through_store(f"{kind} store", opened, options.batches, options.units)
        if options.only in {None, "grpc"}:
            async with database(kind, options.url) as (url, folder):
                await through_grpc(f"{kind} grpc", url, folder, options.batches, options.units)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--units", type=int, default=200_000)
    parser.add_argument("--only", choices=["store", "grpc", "rules"])
    parser.add_argument("--url")
    parser.add_argument("--database", choices=["sqlite", "postgresql"])
    uvloop.run(main(parser.parse_args()))
