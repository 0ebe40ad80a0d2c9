"""What the router in front of a deployment costs: requests straight to a model server, and through it.

    python bench/router.py
    python bench/router.py --concurrent 64 --json

The model server is a stand-in that answers at once, so that the figures are the router's own. All run on
loopback as processes of their own: the stand-in, the router with its routes from a stand-in of the API
server, and the load, which keeps its connections. Straight and through take turns, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [str(ROOT / name) for name in ("services", "gen/python", "clients/python", "tests")]
sys.path[:0] = SOURCES

import psutil  # noqa: E402
import uvicorn  # noqa: E402

from deployer.kubernetes.fake import Fake, kubeconfig, serving  # noqa: E402
from neuroweaver.cluster import kinds  # noqa: E402
from neuroweaver.deployer.domain.backend import Key  # noqa: E402
from neuroweaver.deployer.kubernetes.manifests.routes import ENTRY, Route, Table, written  # noqa: E402
from neuroweaver.deployer.kubernetes.naming import identity  # noqa: E402

KEY = Key("default", "bench", "default")
NAME = "nw-bench-router"
ANSWER = json.dumps({"choices": [{"message": {"role": "assistant", "content": "x" * 400}}]}).encode()
EVENT = b'data: {"choices":[{"delta":{"content":"word "}}]}\n\n'
EVENTS = 200


async def stand_in(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """A model server that thinks of nothing; a path that ends in `stream` gets its answer word by word."""
    assert scope["type"] == "http"
    await receive()
    is_stream = scope["path"].endswith("stream")
    kind = b"text/event-stream" if is_stream else b"application/json"
    headers = [(b"content-type", kind)]
    if not is_stream:
        headers.append((b"content-length", str(len(ANSWER)).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if not is_stream:
        await send({"type": "http.response.body", "body": ANSWER})
        return
    for _ in range(EVENTS):
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})


class Caller:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def ask(self, path: str) -> int:
        """How many bytes the answer has."""
        body = b'{"model":"bench","messages":[{"role":"user","content":"How often is oil changed?"}]}'
        self._writer.write(
            f"POST /v1/{path} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-conversation-id: c{id(self)}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise SystemExit(f"no answer: {head[:80]!r}")
        if b"content-length:" in head:
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            await self._reader.readexactly(length)
            return length
        length = 0
        while size := int(await self._reader.readline(), 16):
            length += size
            await self._reader.readexactly(size + 2)
        await self._reader.readexactly(2)
        return length


async def one_by_one(port: int, count: int) -> float:
    """Milliseconds of a request, median."""
    times = []
    async with Caller(port) as caller:
        for _ in range(count):
            begin = time.perf_counter()
            await caller.ask("chat")
            times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


async def together(port: int, path: str, concurrent: int, count: int) -> float:
    """Requests a second."""

    async def work() -> None:
        async with Caller(port) as caller:
            for _ in range(count // concurrent):
                await caller.ask(path)

    begin = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrent)))
    return count // concurrent * concurrent / (time.perf_counter() - begin)


async def measured(straight: int, through: int, args: argparse.Namespace) -> dict[str, Any]:
    kept: dict[str, list[float]] = {}
    for number in range(args.rounds + 1):
        for name, port in (("straight", straight), ("through", through)):
            found = {
                "ms": await one_by_one(port, 200),
                "requests_per_s": await together(port, "chat", args.concurrent, args.requests),
                "events_per_s": EVENTS
                * await together(
                    port, "chat/stream", args.concurrent, max(args.concurrent, args.requests // 20)
                ),
            }
            if number:  # the first round warms up
                for figure, value in found.items():
                    kept.setdefault(f"{name}_{figure}", []).append(value)
    figures = {name: statistics.median(values) for name, values in kept.items()}
    figures["added_ms"] = statistics.median(
        through - straight for straight, through in zip(kept["straight_ms"], kept["through_ms"], strict=True)
    )
    for figure in ("requests_per_s", "events_per_s"):
        pairs = zip(kept[f"straight_{figure}"], kept[f"through_{figure}"], strict=True)
        figures[f"{figure}_ratio"] = statistics.median(through / straight for straight, through in pairs)
    return figures


@contextmanager
def process(*arguments: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    paths = os.pathsep.join(SOURCES)
    started = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": paths} | environ,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield started
    finally:
        started.terminate()
        started.wait(30)


async def listens(port: int, path: str = "") -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                async with Caller(port) as caller:
                    if path:
                        await caller.ask(path)
                    return
            except (OSError, SystemExit):
                await asyncio.sleep(0.1)


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


@asynccontextmanager
async def routes(port: int, folder: Path) -> AsyncIterator[str]:
    """A kubeconfig of an API server that knows the routes to the stand-in."""
    async with serving(Fake()) as fake:
        metadata = {
            "name": NAME,
            "labels": {identity.MANAGED_BY: "neuroweaver-deployer"},
            "annotations": {identity.KEY: identity.key_annotation(KEY)},
        }
        table = Table(
            KEY, is_affine=True, routes=tuple(Route(n, f"http://127.0.0.1:{port}", 50) for n in (1, 2))
        )
        fake.put(kinds.CONFIG_MAP, {"metadata": metadata, "data": {ENTRY: written(table)}})
        yield str(kubeconfig(fake.url, folder))


async def main(args: argparse.Namespace) -> None:
    straight, through = free_port(), free_port()
    with tempfile.TemporaryDirectory() as scratch:
        async with routes(straight, Path(scratch)) as cluster:
            router = ("-m", "neuroweaver.deployer.kubernetes.in_pods.router", "--namespace=default")
            router += (f"--config-map={NAME}", "--host=127.0.0.1", f"--port={through}")
            with (
                process(__file__, "--serve", str(straight)),
                process(*router, KUBECONFIG=cluster) as running,
            ):
                await listens(straight)
                await listens(through, "chat")
                figures = await measured(straight, through, args)
                figures["router_mib"] = psutil.Process(running.pid).memory_info().rss / 2**20
    figures["machine"] = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    figures["load"] = os.getloadavg()[0]
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    print(
        f"one request: {figures['straight_ms']:.2f} ms straight, {figures['through_ms']:.2f} ms through the "
        f"router, {figures['added_ms']:.2f} ms more\n"
        f"{args.concurrent} at once: {figures['straight_requests_per_s']:,.0f} requests/s straight, "
        f"{figures['through_requests_per_s']:,.0f} through ({figures['requests_per_s_ratio']:.2f})\n"
        f"streams: {figures['straight_events_per_s']:,.0f} events/s straight, "
        f"{figures['through_events_per_s']:,.0f} through ({figures['events_per_s_ratio']:.2f})\n"
        f"the router takes {figures['router_mib']:.0f} MiB; {figures['machine']}, load {figures['load']:.1f}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="in each round and of each kind")
    parser.add_argument("--concurrent", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    told = arguments()
    if told.serve:
        uvicorn.run(stand_in, host="127.0.0.1", port=told.serve, log_level="critical", access_log=False)
    else:
        asyncio.run(main(told))
