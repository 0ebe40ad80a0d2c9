"""What open watches cost: CPU, memory, how soon all hear of a change, and what unary calls notice of it.

    python bench/watches.py [--count 10000] [--floor] [--before REVISION --before-count 1000]

A Registry runs as a process over a new SQLite file, or over `--database postgresql://…`. The watches are real
gRPC streams, held in a process of their own by a bare HTTP/2 client that costs next to nothing, so that the
server is what is measured; the unary calls come from an ordinary gRPC client in this one. With `--floor` and
`--before`, a bare grpc.aio server and the server of a revision of this repository are measured the same way,
for ratios. Linux only: CPU time and memory are read from /proc.
"""

# ruff: noqa: N802, ARG002 (methods are named as their RPCs, and take what gRPC gives them)
from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import grpc
import uvloop

from neuroweaver.local.processes import free_ports
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1 import registry_pb2_grpc

ROOT: Final = Path(__file__).resolve().parent.parent
CONNECTIONS: Final = 20
OPENING: Final = 200
"""Streams on their way at once: gRPC refuses what waits in longer queues."""
MODEL: Final = "service-advisor"
PATIENCE_S: Final = 120.0


@cache
def is_heartbeat(message: bytes) -> bool:
    return pb.ModelEvent.FromString(message).HasField("heartbeat")


class Http2(asyncio.Protocol):
    """One connection of server streams; as little of RFC 9113 as is needed."""

    _DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
    _FLAG_END_STREAM = _FLAG_ACK = 1
    _FLAG_END_HEADERS = 4
    _MOST = 2**31 - 1

    def __init__(self) -> None:
        self._rest = b""
        self._next_stream = 1
        self.messages = self.ended = 0
        self.last_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        windows = (4).to_bytes(2, "big") + self._MOST.to_bytes(4, "big")
        self._transport.write(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self._frame(self._SETTINGS, 0, 0, windows)
        )
        self._transport.write(
            self._frame(self._WINDOW_UPDATE, 0, 0, (self._MOST - 65_535).to_bytes(4, "big"))
        )

    def call(self, path: str, message: bytes) -> None:
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        block = b"".join(b"\0" + self._text(name) + self._text(value) for name, value in headers.items())
        body = b"\0" + len(message).to_bytes(4, "big") + message
        self._transport.write(
            self._frame(self._HEADERS, self._FLAG_END_HEADERS, stream, block)
            + self._frame(self._DATA, self._FLAG_END_STREAM, stream, body)
        )

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at = 0
        while len(data) >= at + 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if len(data) < end:
                break
            self._take(data[at + 3], data[at + 4], data[at + 9 : end])
            at = end
        self._rest = data[at:]

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == self._DATA and payload and not is_heartbeat(payload[5:]):
            self.messages += 1
            self.last_at = time.perf_counter()
        elif kind in {self._SETTINGS, self._PING} and not flags & self._FLAG_ACK:
            echoed = payload if kind == self._PING else b""
            self._transport.write(self._frame(kind, self._FLAG_ACK, 0, echoed))
        elif kind == self._RST_STREAM or (kind == self._HEADERS and flags & self._FLAG_END_STREAM):
            self.ended += 1

    @staticmethod
    def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload

    @staticmethod
    def _text(value: str) -> bytes:
        return bytes((len(value),)) + value.encode()


class Streams:
    """Many watches of one project, each from the change with which it begins."""

    def __init__(self, connections: list[Http2]) -> None:
        self._connections = connections

    @classmethod
    async def connect(cls, port: int) -> Streams:
        loop = asyncio.get_running_loop()
        pairs = [await loop.create_connection(Http2, "127.0.0.1", port) for _ in range(CONNECTIONS)]
        return cls([protocol for _, protocol in pairs])

    async def open(self, count: int, since: int) -> float:
        """Returns when each has heard of the one change after `since`, and so has begun to wait."""
        request = pb.WatchModelsRequest(since_sequence=since).SerializeToString()
        lines = itertools.cycle(self._connections)
        for opened in range(count):
            next(lines).call("/neuroweaver.v1.RegistryService/WatchModels", request)
            await self.heard(opened - OPENING)
        return await self.heard(count)

    @property
    def messages(self) -> int:
        return sum(connection.messages for connection in self._connections)

    async def heard(self, count: int) -> float:
        """When the last of so many messages came, of all since the beginning."""
        give_up = time.perf_counter() + PATIENCE_S
        while self.messages < count:
            if ended := sum(connection.ended for connection in self._connections):
                raise RuntimeError(f"{ended} watches have ended")
            if time.perf_counter() > give_up:
                raise TimeoutError(f"{self.messages} of {count} messages came")
            await asyncio.sleep(0.001)
        return max(connection.last_at for connection in self._connections)


async def hold(port: int, pipe: Connection) -> None:
    """Does with streams what is asked for through the pipe: a method's name and its arguments."""
    streams = await Streams.connect(port)
    while True:
        name, *arguments = await asyncio.to_thread(pipe.recv)
        pipe.send(await getattr(streams, name)(*arguments))


def hold_streams(port: int, pipe: Connection) -> None:
    uvloop.run(hold(port, pipe))


class Watchers:
    """`Streams` in a process of their own, so that they hold up no call of this one."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    @classmethod
    @contextmanager
    def of(cls, port: int) -> Iterator[Watchers]:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=hold_streams, args=(port, theirs))
        process.start()
        theirs.close()
        try:
            yield cls(ours)
        finally:
            process.kill()
            process.join()

    async def open(self, count: int, since: int) -> float:
        return await self._do("open", count, since)

    async def heard(self, count: int) -> float:
        return await self._do("heard", count)

    async def _do(self, *command: object) -> float:
        self._pipe.send(command)
        done: float = await asyncio.to_thread(self._pipe.recv)
        return done


@dataclass(frozen=True)
class Cost:
    """*_cpu: share of one core, without watches and with them, all idle. *_ms: a unary call at the median,
    without watches, beside idle ones, and while a change goes out. slower: the last of these to the one
    before, within a round. heard_s: from the call that makes a change until the last watch has it, with one
    unary call after the other meanwhile; heard_alone_s: without. cpu_us: the server's time for the latter, a
    watch.
    """

    quiet_cpu: float
    idle_cpu: float
    kib_a_stream: float
    quiet_ms: float
    beside_ms: float
    during_ms: float
    slower: float
    heard_s: float
    heard_alone_s: float
    cpu_us: float


async def latencies_ms(stub: registry_pb2_grpc.RegistryServiceAsyncStub, calls: int) -> list[float]:
    request, waits = pb.GetModelRequest(model_id=MODEL), []
    for _ in range(calls):
        started = time.perf_counter()
        await stub.GetModel(request)
        waits.append((time.perf_counter() - started) * 1000)
    return waits


async def change(stub: registry_pb2_grpc.RegistryServiceAsyncStub, text: str) -> None:
    model = pb.Model(model_id=MODEL, description=text)
    await stub.UpdateModel(pb.UpdateModelRequest(model=model, update_mask={"paths": ["description"]}))


async def measure(port: int, pid: int, count: int, *, idle_s: float, rounds: int) -> Cost:
    async with channel(f"127.0.0.1:{port}") as opened:
        await asyncio.wait_for(opened.channel_ready(), PATIENCE_S)
        stub: registry_pb2_grpc.RegistryServiceAsyncStub = registry_pb2_grpc.RegistryServiceStub(opened)
        await stub.RegisterModel(pb.RegisterModelRequest(model=pb.Model(model_id=MODEL)))
        await latencies_ms(stub, 200)
        quiet = await latencies_ms(stub, 500)
        quiet_cpu = await idle_cpu(pid, idle_s)
        memory = rss_kib(pid)
        with Watchers.of(port) as watchers:
            await watchers.open(count, since=0)
            await asyncio.sleep(3)
            memory = rss_kib(pid) - memory
            cpu = await idle_cpu(pid, idle_s)
            beside, heard, alone, during, slower, spent = [], [], [], [], [], []
            for number in range(rounds):
                # Close to each other, so that other work on the machine meets both.
                idle = await latencies_ms(stub, 100)
                total = 2 * count * (number + 1)
                took_s, waits = await changed(stub, watchers, total, f"round {number}")
                heard.append(took_s)
                beside += idle
                during += waits
                slower.append(statistics.median(waits) / statistics.median(idle))
                before_s, started = cpu_s(pid), time.perf_counter()
                await change(stub, f"round {number}, without calls")
                alone.append(await watchers.heard(total + count) - started)
                spent.append((cpu_s(pid) - before_s) / count * 1e6)
                await asyncio.sleep(1)
    return Cost(
        quiet_cpu,
        cpu,
        memory / count,
        *map(statistics.median, (quiet, beside, during, slower, heard, alone, spent)),
    )


async def changed(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub, watchers: Watchers, total: int, text: str
) -> tuple[float, list[float]]:
    """Seconds until all have heard of one change, and how long unary calls took meanwhile.

    total: of the messages that they have by then.
    """
    started, waits = time.perf_counter(), list[float]()

    have_heard = asyncio.Event()

    async def call() -> None:
        while not have_heard.is_set():
            waits.extend(await latencies_ms(stub, 1))

    calling = asyncio.create_task(call())
    await change(stub, text)
    last_at = await watchers.heard(total)
    have_heard.set()
    await calling
    return last_at - started, waits


async def idle_cpu(pid: int, for_s: float) -> float:
    used_s, started = cpu_s(pid), time.perf_counter()
    await asyncio.sleep(for_s)
    return (cpu_s(pid) - used_s) / (time.perf_counter() - started)


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process so far."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def rss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


@contextmanager
def registry(source: Path, database_url: str) -> Iterator[tuple[int, int]]:
    """The port and the process id of a Registry that starts."""
    port, metrics_port = free_ports(2)
    with tempfile.TemporaryDirectory() as home:
        paths = [str(source / part) for part in ("services", "gen/python", "clients/python")]
        environ = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "NEUROWEAVER_HOME": home,
            "NEUROWEAVER_REGISTRY_PORT": str(port),
            "NEUROWEAVER_REGISTRY_METRICS_PORT": str(metrics_port),
        }
        if database_url:
            environ["NEUROWEAVER_DATABASE_URL"] = database_url
        command = [sys.executable, "-m", "neuroweaver.registry"]
        with (Path(home) / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        try:
            yield port, process.pid
        finally:
            process.kill()
            process.wait()


class Bare(registry_pb2_grpc.RegistryServiceServicer):
    """What gRPC itself needs for as many streams: one message to each, one at a time, out of memory."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[pb.ModelEvent]] = set()

    async def RegisterModel(self, request: pb.RegisterModelRequest, context: Any) -> pb.Model:
        return request.model

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.Model:
        return pb.Model(model_id=request.model_id)

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Any) -> pb.Model:
        self._sending = asyncio.create_task(self._send(pb.ModelEvent(sequence=2, model=request.model)))
        return request.model

    async def WatchModels(self, request: pb.WatchModelsRequest, context: Any) -> AsyncIterator[pb.ModelEvent]:
        event = pb.ModelEvent(sequence=1)
        while True:
            yield event
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.add(waiting)
            event = await waiting

    async def _send(self, event: pb.ModelEvent) -> None:
        waiting, self._waiting = self._waiting, set()
        for each in waiting:
            each.set_result(event)
            await asyncio.sleep(0)


def serve_bare(port: int) -> None:
    async def serve() -> None:
        # As many at once as the services admit.
        limits = ("grpc.server.max_pending_requests", "grpc.server.max_pending_requests_hard_limit")
        server = grpc.aio.server(options=[(limit, 16_384) for limit in limits])
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(Bare(), server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    uvloop.run(serve())


@contextmanager
def bare() -> Iterator[tuple[int, int]]:
    """As `registry`, of a server that does nothing else."""
    (port,) = free_ports(1)
    process = multiprocessing.get_context("spawn").Process(target=serve_bare, args=(port,))
    process.start()
    assert process.pid is not None
    try:
        yield port, process.pid
    finally:
        process.kill()
        process.join()


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            ["git", "archive", revision, "services", "gen", "clients"],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder)


async def cost(
    server: AbstractContextManager[tuple[int, int]], count: int, options: argparse.Namespace
) -> Cost:
    with server as (port, pid):
        found = await measure(port, pid, count, idle_s=options.idle_s, rounds=options.rounds)
    print(
        f"{count:6} watches: {found.idle_cpu:7.2%} of a core idle ({found.quiet_cpu:.2%} without), "
        f"{found.kib_a_stream:5.1f} KiB a stream; "
        f"a unary call {found.quiet_ms:.2f} ms quiet, {found.beside_ms:.2f} ms beside them, "
        f"{found.during_ms:.2f} ms during a change ({found.slower:.2f} times as long); "
        f"all heard of it in {found.heard_s:.2f} s, or {found.heard_alone_s:.2f} s without such calls, "
        f"{found.cpu_us:.0f} µs of CPU each",
        flush=True,
    )
    return found


def compared(what: str, cost: Cost, other: Cost) -> None:
    ratios = {each.name: getattr(cost, each.name) / getattr(other, each.name) for each in fields(Cost)}
    print(f"{what}:", ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()), flush=True)


async def main(options: argparse.Namespace) -> None:
    def ours(source: Path = ROOT) -> AbstractContextManager[tuple[int, int]]:
        return registry(source, options.database)

    if options.before:
        with checkout(options.before) as source:
            print(f"before ({options.before}):")
            before = await cost(ours(source), options.before_count, options)
        print("now:")
        compared("now to before", await cost(ours(), options.before_count, options), before)
    now = await cost(ours(), options.count, options)
    if options.floor:
        print("a bare grpc.aio server:")
        compared("now to the floor", now, await cost(bare(), options.count, options))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--before", help="a revision to compare with")
    parser.add_argument("--before-count", type=int, default=1000)
    parser.add_argument("--database", default="", help="a new PostgreSQL database instead of SQLite")
    parser.add_argument("--floor", action="store_true", help="measure a bare grpc.aio server too")
    parser.add_argument("--idle-s", type=float, default=35.0, help="how long idle watches are looked at")
    parser.add_argument("--rounds", type=int, default=5)
    uvloop.run(main(parser.parse_args()))
