"""What a good caller of the local router sees while others do their worst, and what the deployer suffers.

    python bench/hostile_http.py
    python bench/hostile_http.py --json

The router is a deployer's, before stand-ins of model servers. Each flood holds until the good caller has
asked its questions. The deployer's pause is the longest between two of its observations, one every 50 ms;
memory and connections are the router's, which has a process of its own. All is on loopback and ends by
itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [str(ROOT / name) for name in ("services", "gen/python", "clients/python", "tests")]
sys.path[:0] = SOURCES

import httpx2  # noqa: E402
import psutil  # noqa: E402

from deployer.local.worlds import children_environment  # noqa: E402

DEPLOYER: Final = ROOT / "tests" / "deployer" / "local" / "deployer_process.py"
ROUTER: Final = "neuroweaver.deployer.local.front"
QUESTIONS: Final = 50
HELD: Final = 2000
BODY_BYTES: Final = 8 << 20
MIB: Final = 1 << 20


class Router:
    def __init__(self, process: asyncio.subprocess.Process, told: dict[str, Any]) -> None:
        deployer = psutil.Process(process.pid)
        self.process = next((each for each in deployer.children() if is_router(each)), deployer)
        self.url = httpx2.URL(told["endpoint"])
        self.chat = f"{self.url}/chat/completions"
        self.longest_pause_s = 0.0

    async def watch(self, observations: asyncio.StreamReader) -> None:
        """The deployer, between two of its observations by its own clock: this process may be busy."""
        before = None
        while line := await observations.readline():
            now = json.loads(line)["at"]
            self.longest_pause_s = max(self.longest_pause_s, now - (before or now))
            before = now

    async def connect(self, stack: AsyncExitStack, said: bytes = b"") -> None:
        """Says that, and reads nothing of what it hears, until the stack is unwound."""
        reader, writer = await asyncio.open_connection(self.url.host, self.url.port, limit=1024)
        stack.callback(_drop, reader, writer)
        with contextlib.suppress(ConnectionError):
            writer.write(said)
            await writer.drain()

    def head(self, length: int) -> bytes:
        path = httpx2.URL(self.chat).path
        return b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (path.encode(), length)


def is_router(process: psutil.Process) -> bool:
    return ROUTER in process.cmdline()


def _drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    del reader  # while it lives, the connection does
    if not writer.transport.is_closing():
        writer.transport.abort()


@asynccontextmanager
async def routers() -> AsyncIterator[Router]:
    with tempfile.TemporaryDirectory() as home:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(DEPLOYER), home, "0", "1.0.0", "2", ""),
            stdout=asyncio.subprocess.PIPE,
            env=children_environment(),
        )
        assert process.stdout is not None
        try:
            while len((told := json.loads(await process.stdout.readline()))["ready"]) < 2:
                pass
            router = Router(process, told)
            watching = asyncio.create_task(router.watch(process.stdout))
            yield router
            watching.cancel()
        finally:
            process.terminate()
            await process.wait()


async def nothing(router: Router, stack: AsyncExitStack) -> None:
    """The measure of the others."""


async def silent(router: Router, stack: AsyncExitStack) -> None:
    """2,000 connections that say nothing."""
    for _ in range(HELD):
        await router.connect(stack)


async def half_heads(router: Router, stack: AsyncExitStack) -> None:
    """2,000 connections with a head that does not end."""
    for _ in range(HELD):
        await router.connect(stack, router.head(10)[:-2])


async def endless_heads(router: Router, stack: AsyncExitStack) -> None:
    """50 connections, each with 8 MiB of a header."""
    for _ in range(50):
        await router.connect(stack, router.head(10)[:-2] + b"x: " + b"x" * BODY_BYTES)


async def half_bodies(router: Router, stack: AsyncExitStack) -> None:
    """50 connections, each with all but a byte of a body of 8 MiB."""
    for _ in range(50):
        await router.connect(stack, router.head(BODY_BYTES) + b" " * (BODY_BYTES - 1))


async def pipelined(router: Router, stack: AsyncExitStack) -> None:
    """300 connections that ask 100 times at once and read no answer."""
    said = (router.head(2) + b"{}") * 100
    for _ in range(300):
        await router.connect(stack, said)


async def endless(router: Router, stack: AsyncExitStack) -> None:
    """64 callers who ask again and again."""
    client = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False, timeout=60))
    tasks = [asyncio.create_task(_ask_on(router, client)) for _ in range(64)]
    for task in tasks:
        stack.callback(task.cancel)


async def _ask_on(router: Router, client: httpx2.AsyncClient) -> None:
    while True:
        await client.post(router.chat, json={"model": "advisor"})


FLOODS: Final[tuple[Callable[[Router, AsyncExitStack], Awaitable[None]], ...]] = (
    nothing,
    silent,
    half_heads,
    endless_heads,
    half_bodies,
    pipelined,
    endless,
)


async def measured(
    router: Router, flood: Callable[[Router, AsyncExitStack], Awaitable[None]]
) -> dict[str, Any]:
    times_ms, failed = [], 0
    before = peak = router.process.memory_info().rss
    router.longest_pause_s = 0.0
    async with AsyncExitStack() as stack, httpx2.AsyncClient(trust_env=False, timeout=60) as client:
        await flood(router, stack)
        for _ in range(QUESTIONS):
            began = time.perf_counter()
            try:
                failed += (await client.post(router.chat, json={"model": "advisor"})).status_code != 200
            except httpx2.HTTPError:
                failed += 1
            times_ms.append((time.perf_counter() - began) * 1000)
            peak = max(peak, router.process.memory_info().rss)
    times_ms.sort()
    return {
        "flood": flood.__name__,
        "failed": failed,
        "p50_ms": round(times_ms[QUESTIONS // 2], 1),
        "most_ms": round(times_ms[-1], 1),
        "pause_ms": round(router.longest_pause_s * 1000, 1),
        "more_mib": round((peak - before) / MIB, 1),
        "connections": len(router.process.net_connections("tcp")),
    }


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for each flood")
    as_json = parser.parse_args().json
    async with routers() as router:
        for flood in FLOODS:
            row = await measured(router, flood)
            sys.stdout.write(f"{json.dumps(row) if as_json else _line(row)}\n")
            sys.stdout.flush()


def _line(row: dict[str, Any]) -> str:
    failed = f"{row['failed']:3} of {QUESTIONS} failed"
    times = f"p50 {row['p50_ms']:7} ms   most {row['most_ms']:7} ms"
    suffered = f"deployer: pause {row['pause_ms']:7} ms   router: {row['more_mib']:6} MiB more"
    return f"{row['flood']:14} {failed}   {times}   {suffered}"


if __name__ == "__main__":
    asyncio.run(main())
