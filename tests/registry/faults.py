"""Registry processes that are killed, and writers that go on: what they were told is held against what there is.

Shared by the tests and by bench/registry_faults.py, which does the same for longer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from semver import Version

from neuroweaver.mesh.wire import status
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
from ports import free_port
from registry.calls import digest_of, safetensors

MODEL = "advisor"
LEVELS = (pb.BUMP_LEVEL_PATCH, pb.BUMP_LEVEL_PRERELEASE, pb.BUMP_LEVEL_MINOR, pb.BUMP_LEVEL_PATCH)

# Whether the work was done is not known, or it is known that it was not: the same request is to be sent again. A disk
# is full for a while.
_AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
OPTIONS = (
    # Every failure is seen and counted; the channel of the mesh would hide some.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


class Server:
    """One process of the Registry, on the same port each time it is started."""

    def __init__(self, home: Path, database_url: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._log = home / f"registry-{self.address.rpartition(':')[2]}.log"
        inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self._environment = inherited | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "NEUROWEAVER_HOME": str(home),
            "NEUROWEAVER_REGISTRY_PORT": self.address.rpartition(":")[2],
            "NEUROWEAVER_REGISTRY_METRICS_PORT": str(free_port()),
            "NEUROWEAVER_DATABASE_URL": "" if database_url.startswith("sqlite") else database_url,
            "NEUROWEAVER_LOG_FORMAT": "json",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "neuroweaver.registry"], env=self._environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def ready(self) -> None:
        """Once it takes calls. Raises AssertionError if it ended instead."""
        give_up = time.monotonic() + 60
        while not await self._is_answering():
            assert self.process, "was not started"
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < give_up, self.log()
            await asyncio.sleep(0.02)

    async def _is_answering(self) -> bool:
        async with client(self.address) as registry:
            try:
                await registry.ListModels(pb.ListModelsRequest(), timeout=5)
            except grpc.RpcError:
                return False
        return True

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def faults(self) -> list[str]:
        """The errors in its log: exceptions that nobody foresaw. Libraries have logs and views of their own."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [
            f"{line['message']} {line.get('exception', '')}"
            for line in lines
            if line["level"] == "error" and line["logger"].startswith("neuroweaver")
        ]


@contextmanager
def servers(home: Path, database_url: str, count: int = 1) -> Iterator[list[Server]]:
    """`count` processes over one database and one folder of artifacts."""
    started = [Server(home, database_url) for _ in range(count)]
    try:
        for server in started:
            server.start()
        yield started
    finally:
        for server in started:
            server.kill()


@asynccontextmanager
async def client(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        yield RegistryServiceStub(channel)


@dataclass
class Told:
    """What callers were told, over all of them. retries: by status, the calls that had to be sent again."""

    made: list[pb.ModelVersion] = field(default_factory=list)
    moved: list[pb.Alias] = field(default_factory=list)
    measured: dict[tuple[str, str], float] = field(default_factory=dict)
    uploaded: list[str] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_answered(
        self, send: Callable[[], Awaitable[Any]], *, patience_s: float = 180.0, pause_s: float = 0.05
    ) -> Any:
        """The answer to a call that is sent again while nobody knows whether it was done."""
        begun = time.monotonic()
        while True:
            try:
                answer = await send()
            except grpc.RpcError as error:
                if not _is_open(error) or time.monotonic() > begun + patience_s:
                    raise
                self.retries[f"{error.code().name} {error.details()}"[:120]] += 1
            else:
                self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
                self.answered.set()
                return answer
            await asyncio.sleep(random.uniform(0, pause_s))


def _is_open(error: grpc.RpcError) -> bool:
    if error.code() is grpc.StatusCode.ABORTED:
        return status.reason(error) == "CONCURRENT_UPDATE"
    return error.code() in _AGAIN


async def register(address: str) -> None:
    async with client(address) as registry:
        await registry.RegisterModel(pb.RegisterModelRequest(model=pb.Model(model_id=MODEL)))


async def race(
    addresses: Sequence[str], writers: int, bumps: int, *, first_timeout_s: float | None = None
) -> tuple[Told, float]:
    """So many writers raise one model so often each, spread over the servers; what they were told, and seconds.

    first_timeout_s: after at most that long a caller gives up, and from then on waits up to twice as long each
    time; None: callers wait.
    """
    told = Told()
    begun = time.monotonic()
    await asyncio.gather(
        *(
            _bump(told, addresses[writer % len(addresses)], writer, bumps, first_timeout_s)
            for writer in range(writers)
        )
    )
    return told, time.monotonic() - begun


async def _bump(told: Told, address: str, writer: int, bumps: int, first_timeout_s: float | None) -> None:
    async with client(address) as registry:
        for number in range(bumps):
            request = pb.BumpModelVersionRequest(
                model_id=MODEL, level=LEVELS[(writer + number) % len(LEVELS)], request_id=uuid.uuid4().hex
            )
            timeouts = _timeouts(first_timeout_s)
            made = await told.until_answered(
                lambda request=request, timeouts=timeouts: registry.BumpModelVersion(
                    request, timeout=next(timeouts)
                )
            )
            told.made.append(made)


def _timeouts(first_s: float | None) -> Iterator[float | None]:
    for attempt in itertools.count():
        yield None if first_s is None else random.uniform(0, first_s) * 2**attempt


async def repeat_at_once(addresses: Sequence[str], times: int) -> list[pb.ModelVersion]:
    """The answers to one request that is sent so often at once."""
    request = pb.BumpModelVersionRequest(
        model_id=MODEL, level=pb.BUMP_LEVEL_MINOR, request_id=uuid.uuid4().hex
    )
    async with AsyncExitStack() as stack:
        registries = [await stack.enter_async_context(client(address)) for address in addresses]
        calls = [registries[number % len(registries)].BumpModelVersion(request) for number in range(times)]
        return list(await asyncio.gather(*calls))


async def read_behind(addresses: Sequence[str], readers: int, moves: int) -> None:
    """What one server acknowledged, the next one reads. Raises AssertionError for what is stale.

    Each reader moves an alias of its own, through one server after the other, with the others at work.
    """
    async with AsyncExitStack() as stack:
        registries = [await stack.enter_async_context(client(address)) for address in addresses]
        numbers = [(await registries[0].BumpModelVersion(_raise())).version for _ in range(3)]
        await asyncio.gather(
            *(_read_behind(registries, f"r{each}", numbers, moves) for each in range(readers))
        )


async def _read_behind(registries: Sequence[Any], alias: str, numbers: Sequence[str], moves: int) -> None:
    for move in range(moves):
        number = numbers[move % len(numbers)]
        writing, reading = registries[move % len(registries)], registries[(move + 1) % len(registries)]
        await writing.SetAlias(pb.SetAliasRequest(model_id=MODEL, alias=alias, version=number))
        resolved = await reading.ResolveAlias(pb.ResolveAliasRequest(model_id=MODEL, alias=alias))
        selected = await reading.GetModelVersion(
            pb.GetModelVersionRequest(model_id=MODEL, version=f"@{alias}")
        )
        assert (resolved.version, selected.version) == (number, number)
        assert alias in resolved.aliases


def _raise() -> pb.BumpModelVersionRequest:
    return pb.BumpModelVersionRequest(model_id=MODEL, level=pb.BUMP_LEVEL_MINOR)


@dataclass
class Writer:
    """Does what clients do until it is told to stop, each call under its request_id until it is answered.

    Its alias is nobody else's, and each move says where the last one left it: a write that was lost, or done
    twice, makes a later call fail.
    """

    name: str
    address: str
    told: Told
    stop: asyncio.Event
    random: random.Random

    async def run(self) -> None:
        at = "-"
        async with client(self.address) as registry:
            for number in itertools.count():
                if self.stop.is_set():
                    return
                made = await self._bump(registry, number)
                at = await self._move(registry, at, made.version)
                await self._measure(registry, made.version, f"{self.name}-{number}", number)
                if self.random.random() < 0.3:
                    await self._upload(registry, f"{self.name}-{number}".encode())

    async def _bump(self, registry: Any, number: int) -> pb.ModelVersion:
        request = pb.BumpModelVersionRequest(
            model_id=MODEL, level=self.random.choice(LEVELS), request_id=f"{self.name}-bump-{number}"
        )
        made = await self.told.until_answered(lambda: registry.BumpModelVersion(request, timeout=10))
        self.told.made.append(made)
        return made

    async def _move(self, registry: Any, at: str, to: str) -> str:
        request = pb.SetAliasRequest(
            model_id=MODEL, alias=self.name, version=to, expected_version=at, request_id=f"{self.name}-{to}"
        )
        moved = await self.told.until_answered(lambda: registry.SetAlias(request, timeout=10))
        self.told.moved.append(moved)
        return moved.version

    async def _measure(self, registry: Any, version: str, metric: str, number: int) -> None:
        request = pb.UpdateMetricsRequest(
            model_id=MODEL,
            version=version,
            metrics={metric: pb.Metric(value=number)},
            request_id=f"{self.name}-measure-{number}",
        )
        await self.told.until_answered(lambda: registry.UpdateMetrics(request, timeout=10))
        self.told.measured[version, metric] = number

    async def _upload(self, registry: Any, tail: bytes) -> None:
        content = safetensors(tail * 20_000)
        digest = digest_of(content)
        request = pb.GetUploadStatusRequest(digest=digest)

        async def send() -> pb.UploadArtifactResponse:
            at = await registry.GetUploadStatus(request, timeout=10)
            header = pb.UploadHeader(
                digest=digest,
                size_bytes=len(content),
                path="m.safetensors",
                offset_bytes=0 if at.is_complete else at.committed_bytes,
            )
            return await registry.UploadArtifact(_parts(header, content), timeout=10)

        assert (await self.told.until_answered(send)).is_complete
        self.told.uploaded.append(digest)


async def _parts(header: pb.UploadHeader, content: bytes) -> AsyncIterator[pb.UploadArtifactRequest]:
    yield pb.UploadArtifactRequest(header=header)
    for begin in range(header.offset_bytes, len(content), 32 * 1024):
        yield pb.UploadArtifactRequest(chunk=content[begin : begin + 32 * 1024])


@dataclass
class Watcher:
    """Follows the changes, resuming after the last one it saw; remembers all, and how often it resumed."""

    address: str
    seen: list[pb.ModelEvent] = field(default_factory=list)
    resumed: int = 0

    async def follow(self) -> None:
        async with client(self.address) as registry:
            while True:
                since = self.seen[-1].sequence if self.seen else 0
                try:
                    async for event in registry.WatchModels(pb.WatchModelsRequest(since_sequence=since)):
                        if event.action:
                            self.seen.append(event)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                self.resumed += 1
                await asyncio.sleep(0.05)

    async def until(self, sequence: int) -> None:
        """Once it has seen as far as that."""
        give_up = time.monotonic() + 30
        while not self.seen or self.seen[-1].sequence < sequence:
            assert time.monotonic() < give_up, f"{len(self.seen)} events seen, the last is {sequence}"
            await asyncio.sleep(0.05)


async def load_through(
    address: str, disturb: Callable[[Told], Awaitable[None]], writers: int = 8
) -> tuple[Told, Watcher]:
    """Writers and a watcher while `disturb` runs; after it, each call that was begun is finished."""
    told, stop, watcher = Told(), asyncio.Event(), Watcher(address)
    async with asyncio.TaskGroup() as group:
        following = group.create_task(watcher.follow())
        working = [
            group.create_task(Writer(f"w{number}", address, told, stop, random.Random(number)).run())
            for number in range(writers)
        ]
        await disturb(told)
        stop.set()
        await asyncio.gather(*working)
        async with client(address) as registry:
            head = (await registry.VerifyAudit(pb.VerifyAuditRequest())).head
        await watcher.until(head.sequence)
        following.cancel()
    return told, watcher


async def kill_and_restart(server: Server, points: int, chance: random.Random, told: Told) -> None:
    """SIGKILL at so many moments, each time with the writers at work."""
    for _ in range(points):
        await under_way(told, chance)
        server.kill()
        server.start()
        await server.ready()
    await under_way(told, chance)


async def under_way(told: Told, chance: random.Random) -> None:
    """A random moment after the next answer."""
    told.answered.clear()
    await told.answered.wait()
    await asyncio.sleep(chance.uniform(0, 0.6))


@contextmanager
def crashing_postgres() -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """A PostgreSQL of its own: its URL, and a function that crashes it and starts it again."""
    path = os.pathsep.join(path for path in sys.path if path)
    # In a process of its own: gRPC's threads do not outlive a fork, which a change of the user needs.
    process = subprocess.Popen(
        [sys.executable, "-c", _POSTGRES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        text=True,
    )
    assert process.stdin
    assert process.stdout
    lines, commands = process.stdout, process.stdin

    async def crash_and_restart() -> None:
        print("restart", file=commands, flush=True)
        assert await asyncio.to_thread(lines.readline) == "restarted\n"

    try:
        url = lines.readline().strip()
        assert url, "PostgreSQL did not start"
        yield url, crash_and_restart
    finally:
        commands.close()
        process.wait(timeout=60)
        lines.close()


_POSTGRES = """
import subprocess, sys
import psycopg
import postgres

folder = postgres.binaries()
with postgres.server(folder) as url:
    with psycopg.connect(url) as connection:
        (data,) = connection.execute("SHOW data_directory").fetchone()
    control = [folder / "pg_ctl", "-s", "-w", "-D", data, "-m", "immediate"]
    options = {"cwd": "/", "stdout": subprocess.DEVNULL, **postgres._unprivileged()}
    print(url, flush=True)
    for _ in sys.stdin:
        subprocess.run([*control, "restart"], check=True, **options)
        print("restarted", flush=True)
    subprocess.run([*control, "stop"], check=True, **options)
"""


async def verify(address: str, told: Told, watcher: Watcher | None = None) -> None:
    """That what there is agrees with what the callers were told: nothing lost, nothing twice."""
    async with client(address) as registry:
        everything = await audit_events(registry)
        verdict = await registry.VerifyAudit(pb.VerifyAuditRequest())
        assert verdict.is_intact, verdict.explanation
        assert [event.sequence for event in everything] == list(range(1, verdict.events + 1))
        events = [event for event in everything if event.model_id == MODEL]
        assert Counter(event.action for event in events) == +Counter(
            {
                "model.registered": 1,
                "version.created": len(told.made),
                "alias.set": len(told.moved),
                "version.measured": len(told.measured),
            }
        )
        await _verify_line(registry, told, [event for event in events if event.action == "version.created"])
        await _verify_aliases(registry, told)
        for digest in told.uploaded:
            assert (await registry.GetUploadStatus(pb.GetUploadStatusRequest(digest=digest))).is_complete
    if watcher:
        assert [(each.sequence, each.action) for each in watcher.seen] == [
            (event.sequence, event.action) for event in everything
        ]


async def _verify_line(registry: Any, told: Told, created: Sequence[pb.AuditEvent]) -> None:
    """Distinct versions, each made from the one that was the latest before it, in the order of the history."""
    there = {version.version: version for version in await versions(registry)}
    ascending = sorted(there, key=Version.parse)
    assert sorted((made.version for made in told.made), key=Version.parse) == ascending
    assert [event.version for event in created] == ascending
    assert [there[number].parent_version for number in ascending] == ["", *ascending][:-1]
    assert {made.version: int(made.etag) for made in told.made} == {
        event.version: event.sequence for event in created
    }
    for (version, metric), value in told.measured.items():
        assert there[version].metrics[metric].value == value


async def _verify_aliases(registry: Any, told: Told) -> None:
    """Each points where its last move put it, and did point where each move put it."""
    listed = await registry.ListAliases(pb.ListAliasesRequest(model_id=MODEL))
    assert {alias.alias: alias for alias in listed.aliases} == {alias.alias: alias for alias in told.moved}
    for moved in told.moved:
        then = await registry.ResolveAlias(
            pb.ResolveAliasRequest(model_id=MODEL, alias=moved.alias, at=moved.update_time)
        )
        assert then.version == moved.version


async def versions(registry: Any) -> list[pb.ModelVersion]:
    """All of the model, page by page."""
    request, found = pb.ListModelVersionsRequest(model_id=MODEL, page_size=1000), []
    while True:
        page = await registry.ListModelVersions(request)
        found += page.versions
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def audit_events(registry: Any) -> list[pb.AuditEvent]:
    """All, page by page."""
    request, found = pb.ListAuditEventsRequest(page_size=1000), []
    while True:
        page = await registry.ListAuditEvents(request)
        found += page.events
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token
