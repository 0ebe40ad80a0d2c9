"""What the Registry's reads cost: one version, and lists out of many.

    python bench/registry.py [--rounds 12] [--calls 300] [--sizes 1000,10000,100000] [--only reads|lists]

Reads: CPU time of the server's process for GetModelVersion and ResolveAlias, beside a bare grpc.aio echo. The
servers run side by side (the Registry as it starts by itself, traced, its access log as JSON in a file), and
one client calls them by turns, so that all see the same machine. "unremembered" is the same server without
its cache: what the first read after a write costs.

Lists: CPU time of a first page of 50, and of one from the middle, of this process and of PostgreSQL's that
works for it, without gRPC, by turns from models of different sizes in one database. The rows are put into the
tables directly and have no history.

Both databases; PostgreSQL is started as the tests start it, without fsync, which reads never wait for. Linux
only: CPU time is read from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import uvloop
from semver import Version
from sqlalchemy import insert, text

from mesh import cpu_s
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate
from neuroweaver.mesh.database.pagination import Key, Page
from neuroweaver.mesh.database.revision import Revisions
from neuroweaver.mesh.handlers import filters
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.registry import __main__ as registry
from neuroweaver.registry.domain import records
from neuroweaver.registry.domain.model import Metric, Model, ModelVersion, State
from neuroweaver.registry.domain.versions import precedence
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.registry.storage import tables
from neuroweaver.registry.storage.listing import TAGS
from neuroweaver.registry.storage.store import Store
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1.registry_pb2_grpc import (
    RegistryServiceServicer,
    RegistryServiceStub,
    add_RegistryServiceServicer_to_server,
)

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import postgres

MODEL = "service-advisor"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
BARE = "bare echo"
UNREMEMBERED = "unremembered"
AT_ONCE = 16
# A read without the cache costs several times as much: fewer of them say as much.
FEWER = 5

LISTS = (
    ("", "version desc"),
    ("state=VALIDATED", "version desc"),
    ("state=DEPLOYED", "version desc"),
    ("range=^1.2", "version desc"),
    ("tags.team=service", "version desc"),
    ("tags.golden=yes", "version desc"),
    ("state=VALIDATED AND tags.team=service", "version desc"),
    ("state=DEPLOYED AND tags.team=service", "version desc"),
    ("state=TRAINED AND tags.golden=yes", "version desc"),
    ("", "create_time desc"),
    ("state=VALIDATED", "create_time desc"),
    ("tags.golden=yes", "create_time desc"),
)
MODEL_LISTS = ("", "tags.team=service", "tags.golden=yes")


# Reads


def version_request() -> pb.CreateModelVersionRequest:
    """A version with what a trained one has, but for files."""
    request = pb.CreateModelVersionRequest(
        model_id=MODEL,
        version="1.0.0",
        metrics={f"m{index}": pb.Metric(value=index / 7) for index in range(4)},
        tags={"team": "service", "specialization": "service_advisor"},
        base=pb.BasePin(name="smollm2-135m-instruct", model_digest="a" * 64, context_length=2048),
        lineage=pb.Lineage(training_job_id="job-1", dataset_digest="b" * 64, dataset_path="data/train.jsonl"),
        request_id="bench",
    )
    request.config.update(
        {"lora_r": 16, "lora_alpha": 32, "learning_rate": 2e-4, "epochs": 3, "target_modules": ["q", "v"]}
    )
    return request


class Bare(RegistryServiceServicer):
    """An echo, and an answer as large as the Registry's that is there already."""

    def __init__(self) -> None:
        made = version_request()
        fields = {name: getattr(made, name) for name in ("config", "metrics", "tags", "base", "lineage")}
        self._version = pb.ModelVersion(model_id=MODEL, version="1.0.0", aliases=["candidate"], **fields)

    async def GetModelVersion(self, request: Any, _context: Any) -> pb.ModelVersion:  # noqa: N802
        return pb.ModelVersion(model_id=request.model_id, description="a model")

    async def ResolveAlias(self, _request: Any, _context: Any) -> pb.ModelVersion:  # noqa: N802
        return self._version


async def serve_bare() -> None:
    server = grpc.aio.server()
    add_RegistryServiceServicer_to_server(Bare(), server)
    server.add_insecure_port(f"127.0.0.1:{os.environ['NEUROWEAVER_REGISTRY_PORT']}")
    await server.start()
    await server.wait_for_termination()


class Untold(Revisions):
    """Never says that nothing was written, so that every read is a read."""

    async def of(self, key: str) -> None:
        del key

    async def close(self) -> None:
        return


def serve(kind: str) -> None:
    if kind == "bare":
        uvloop.run(serve_bare())
        return
    if kind == UNREMEMBERED:
        Database.revisions = lambda _database, _statement: Untold()
    registry.run("registry", RegistrySettings, registry.main)


@contextmanager
def server(kind: str, home: Path, log: Any, url: str = "") -> Iterator[tuple[int, str]]:
    """Its process id and its address."""
    port = free_port()
    environment = os.environ | {
        "NEUROWEAVER_HOME": str(home),
        "NEUROWEAVER_REGISTRY_PORT": str(port),
        "NEUROWEAVER_REGISTRY_METRICS_PORT": str(free_port()),
        "NEUROWEAVER_DATABASE_URL": url,
        "NEUROWEAVER_LOG_FORMAT": "json",
    }
    command = [sys.executable, __file__, "--serve", kind]
    with subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
                grpc.channel_ready_future(opened).result(timeout=60)
            yield process.pid, f"127.0.0.1:{port}"
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def fill(stub: Any) -> None:
    await stub.RegisterModel(pb.RegisterModelRequest(model=pb.Model(model_id=MODEL), allow_existing=True))
    await stub.CreateModelVersion(version_request())
    await stub.SetAlias(pb.SetAliasRequest(model_id=MODEL, alias="candidate", version="1.0.0"))


@dataclass(frozen=True)
class Step:
    name: str
    pid: int
    call: Any
    request: Any
    calls: int
    at_once: int

    async def measure(self) -> tuple[float, float]:
        """Microseconds an RPC: the server's CPU, and the time from call to answer at the median."""
        before, waits = cpu_s(self.pid), []

        async def caller() -> None:
            for _ in range(self.calls // self.at_once):
                started = time.perf_counter()
                await self.call(self.request)
                waits.append(time.perf_counter() - started)

        await asyncio.gather(*(caller() for _ in range(self.at_once)))
        return (cpu_s(self.pid) - before) / len(waits) * 1e6, statistics.median(waits) * 1e6


async def compare_reads(started: dict[str, tuple[int, str]], rounds: int, calls: int) -> None:
    """Each step right after the bare echo's, with which it is compared."""
    stubs = {name: RegistryServiceStub(channel(address)) for name, (_, address) in started.items()}
    get = pb.GetModelVersionRequest(model_id=MODEL, version="latest")
    resolve = pb.ResolveAliasRequest(model_id=MODEL, alias="candidate")
    for at_once in (1, AT_ONCE):
        pid, _ = started[BARE]
        bare = Step(BARE, pid, stubs[BARE].GetModelVersion, get, calls, at_once)
        steps = [Step("as large an answer, bare", pid, stubs[BARE].ResolveAlias, resolve, calls, at_once)]
        for name, stub in stubs.items():
            if name == BARE or (UNREMEMBERED in name and at_once > 1):
                continue
            await fill(stub)
            share = calls // FEWER if UNREMEMBERED in name else calls
            for method, request in (("GetModelVersion", get), ("ResolveAlias", resolve)):
                call = getattr(stub, method)
                steps.append(Step(f"{method}, {name}", started[name][0], call, request, share, at_once))
        await report_reads(bare, steps, rounds)


async def report_reads(bare: Step, steps: list[Step], rounds: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {step.name: [] for step in (bare, *steps)}
    ratios: dict[str, list[float]] = {step.name: [] for step in steps}
    for step in (bare, *steps):
        await step.measure()  # warm
    for _ in range(rounds):
        for step in steps:
            for each in (bare, step):
                found[each.name].append(await each.measure())
            ratios[step.name].append(found[step.name][-1][0] / found[bare.name][-1][0])
    print(f"\n{bare.at_once} at once")
    print(f"{'':<42} CPU µs  least  wait µs   CPU beside the bare echo (quartiles of {rounds} rounds)")
    for name, pairs in found.items():
        cpu, wait = (statistics.median(column) for column in zip(*pairs, strict=True))
        line = f"{name:<42} {cpu:6.0f} {min(pair[0] for pair in pairs):6.0f} {wait:8.0f}"
        if name in ratios:
            low, middle, high = statistics.quantiles(ratios[name], n=4)
            line += f"   {middle:5.2f} ({low:.2f} to {high:.2f})"
        print(line, flush=True)


def reads(databases: dict[str, str], rounds: int, calls: int) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context((folder / "log").open("wb"))
        started = {BARE: stack.enter_context(server("bare", folder, log))}
        for name, url in databases.items():
            for kind, label in (("registry", name), (UNREMEMBERED, f"{name} {UNREMEMBERED}")):
                started[label] = stack.enter_context(server(kind, folder / name, log, url))
        uvloop.run(compare_reads(started, rounds, calls))


# Lists


def version_rows(model_id: str, index: int, size: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A fifth is VALIDATED and ten are DEPLOYED; all belong to a team and ten are golden."""
    number = Version(1, index // 100, index % 100)
    every = size // 10
    state = State.VALIDATED if index % 5 == 0 else State.TRAINED
    state = State.DEPLOYED if index % every == 3 else state
    tags = {"team": "service"} | ({"golden": "yes"} if index % every == 7 else {})
    made = NOW + timedelta(seconds=index)
    version = ModelVersion(
        model_id=model_id,
        version=number,
        state=state,
        config={"lora_r": 16, "lora_alpha": 32},
        metrics={"win_rate": Metric(value=0.6)},
        tags=tags,
        create_time=made,
        update_time=made,
    )
    key = {"project": "default", "model_id": model_id, "precedence": precedence(number)}
    row = {
        **key,
        "version": str(number),
        "is_prerelease": False,
        "state": state.value,
        "create_time": made,
        "delete_time": None,
        "record": records.dump(version),
    }
    return row, [{**key, "name": name, "value": value} for name, value in tags.items()]


def model_rows(
    project: str, model_id: str, tags: dict[str, str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    model = Model(model_id=model_id, tags=tags, create_time=NOW, update_time=NOW)
    key = {"project": project, "model_id": model_id}
    tag_rows = [{**key, "precedence": "", "name": name, "value": value} for name, value in tags.items()]
    return {**key, "delete_time": None, "record": records.dump(model)}, tag_rows


async def populate(database: Database, size: int) -> None:
    """A model with `size` versions, and a project with `size` models."""
    async with database.write() as connection:
        await connection.execute(insert(tables.models).values(**model_rows("default", f"m{size}", {})[0]))
        for begin in range(0, size, 5_000):
            batch = range(begin, min(size, begin + 5_000))
            versions = [version_rows(f"m{size}", index, size) for index in batch]
            models = [
                model_rows(
                    f"p{size}",
                    f"m{index:06}",
                    {"team": "service"} | ({"golden": "yes"} if index % (size // 10) == 7 else {}),
                )
                for index in batch
            ]
            await connection.execute(insert(tables.versions), [row for row, _ in versions])
            await connection.execute(insert(tables.models), [row for row, _ in models])
            tags = [tag for _, found in (*versions, *models) for tag in found]
            await connection.execute(insert(tables.tags), tags)
    # One model more, whose versions have the same tag: what lists of models must not wade through.
    async with database.write() as connection:
        await connection.execute(insert(tables.models).values(**model_rows(f"p{size}", "a", {})[0]))
        rows = [version_rows("a", index, size) for index in range(min(size, 10_000))]
        await connection.execute(insert(tables.versions), [row | {"project": f"p{size}"} for row, _ in rows])
        tags = [tag | {"project": f"p{size}"} for _, found in rows for tag in found]
        await connection.execute(insert(tables.tags), tags)


async def page_of_versions(store: Store, size: int, terms: Any, order_by: str, after: Key | None) -> int:
    async with store.read("default") as reader:
        shown, _ = await reader.versions(
            f"m{size}", Page(50, after, ("bench",)), order_by=order_by, terms=terms
        )
    return len(shown)


async def page_of_models(store: Store, size: int, terms: Any, after: Key | None) -> int:
    async with store.read(f"p{size}") as reader:
        shown, _ = await reader.models(Page(50, after, ("bench",)), terms)
    return len(shown)


def middle_of(size: int, order_by: str) -> Key:
    index = size // 2
    place = precedence(Version(1, index // 100, index % 100))
    return (NOW + timedelta(seconds=index), place) if order_by.startswith("create_time") else (place,)


async def compare_lists(name: str, url: str, sizes: list[int], repeats: int) -> None:
    database = Database(url, schema="registry")
    await migrate(database, "neuroweaver.registry")
    started = time.perf_counter()
    for size in sizes:
        await populate(database, size)
    if not database.is_sqlite:  # what autovacuum does by itself after a while
        async with database.write() as connection:
            await connection.execute(text("ANALYZE"))
    print(f"\n{name}: filled in {time.perf_counter() - started:.0f} s")
    print(f"{f'ms of CPU a page (quartiles of {repeats})':<56}" + "".join(f"{size:>18,}" for size in sizes))
    store = Store(database)
    for title, is_deep in (("first page", False), ("from the middle", True)):
        print(title)
        for filter_, order_by in LISTS:
            terms = filters.parse(filter_, ("state", "range", TAGS))

            async def versions(
                size: int, terms: Any = terms, order_by: str = order_by, is_deep: bool = is_deep
            ) -> None:
                after = middle_of(size, order_by) if is_deep else None
                await page_of_versions(store, size, terms, order_by, after)

            await print_line(f"versions, {filter_ or 'all'}, {order_by}", database, versions, sizes, repeats)
        for filter_ in MODEL_LISTS:
            terms = filters.parse(filter_, (TAGS,))

            async def models(size: int, terms: Any = terms, is_deep: bool = is_deep) -> None:
                await page_of_models(store, size, terms, (f"m{size // 2:06}",) if is_deep else None)

            await print_line(f"models, {filter_ or 'all'}", database, models, sizes, repeats)
    await database.close()


async def print_line(name: str, database: Database, page: Any, sizes: list[int], repeats: int) -> None:
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for size in sizes:
        await page(size)  # warm
    processes = await backends(database)
    for _ in range(repeats):
        for size in sizes:
            before = time.process_time() + sum(map(cpu_s, processes))
            await page(size)
            found[size].append((time.process_time() + sum(map(cpu_s, processes)) - before) * 1e3)
    quartiles = (statistics.quantiles(found[size], n=4) for size in sizes)
    columns = (f"{middle:7.1f} ({low:.1f}-{high:.1f})" for low, middle, high in quartiles)
    print(f"{name:<56}" + "".join(f"{column:>18}" for column in columns), flush=True)


async def backends(database: Database) -> list[int]:
    """The processes of PostgreSQL that work for this one."""
    if database.is_sqlite:
        return []
    async with database.read() as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        return list((await connection.execute(text(query))).scalars())


# Both


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{name}, {os.cpu_count()} cores, Linux {platform.release()}"


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """URLs by name."""
    binaries = postgres.binaries()
    found = {"SQLite": f"sqlite:///{folder / 'lists.db'}"}
    if binaries is None:
        print("PostgreSQL's server is not installed (Debian: apt-get install postgresql): SQLite alone")
        yield found
        return
    with postgres.server(binaries) as url:
        yield found | {"PostgreSQL": url}


def main(options: argparse.Namespace) -> None:
    print(f"{machine()}; Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder, databases(Path(folder)) as urls:
        if options.only != "lists":
            # The Registry's own embedded database, below its home.
            reads(urls | {"SQLite": ""}, options.rounds, options.calls)
        if options.only != "reads":
            for name, url in urls.items():
                uvloop.run(compare_lists(name, url, options.sizes, options.rounds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument(
        "--sizes",
        type=lambda given: [int(each) for each in given.split(",")],
        default=[1_000, 10_000, 100_000],
    )
    parser.add_argument("--only", choices=("reads", "lists"))
    parser.add_argument("--serve", choices=("bare", "registry", UNREMEMBERED), help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.serve:
        serve(told.serve)
    else:
        main(told)
