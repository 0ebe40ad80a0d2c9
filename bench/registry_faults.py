"""What the Registry stands: many writers at once, kill -9 under load, a crashing database, random stories.

    python bench/registry_faults.py [--bumps 500] [--kills 25] [--crashes 10] [--examples 100]

The long forms of tests/registry/test_{race,kill,state_machine}.py, over SQLite and PostgreSQL. Each ends with
the same checks, and what disagrees is raised; what is printed is how long it took and how often callers had
to ask again. 0 leaves a part out. PostgreSQL is started here, without fsync; SQLite syncs each commit.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Servers that go away under their clients are what this is about, and gRPC would tell of each.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# In place of this folder, whose registry.py is another one than the tests' registry.
sys.path[0] = str(Path(__file__).parents[1] / "tests")

from registry.faults import (  # noqa: E402
    Server,
    Told,
    Watcher,
    crashing_postgres,
    kill_and_restart,
    load_through,
    race,
    register,
    servers,
    under_way,
    verify,
)
from registry.test_state_machine import explore  # noqa: E402
from registry.worlds import world  # noqa: E402

KINDS = ("sqlite", "postgresql")


@contextmanager
def database(kind: str) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """The URL of an empty one, and a function that crashes it if it is a server."""
    if kind == "postgresql":
        with crashing_postgres() as opened:
            yield opened
    else:
        yield "sqlite:", _nothing


async def _nothing() -> None:
    raise NotImplementedError("SQLite has no server that could crash")


@contextmanager
def started(url: str, processes: int) -> Iterator[list[Server]]:
    with (
        tempfile.TemporaryDirectory(prefix="nw-faults-") as home,
        servers(Path(home), url, processes) as running,
    ):
        yield running
        for server in running:
            if faults := server.faults():
                raise AssertionError(f"unforeseen exceptions in the log: {faults[0]}")


async def run_race(kind: str, processes: int, writers: int, bumps: int) -> None:
    with database(kind) as (url, _), started(url, processes) as running:
        for server in running:
            await server.ready()
        await register(running[0].address)
        told, seconds = await race([server.address for server in running], writers, bumps)
        await verify(running[0].address, told)
        report(
            f"race      {kind:<10} {processes} processes, {writers} writers x {bumps} bumps:",
            f"{seconds:.1f} s, {len(told.made) / seconds:.0f} /s, slowest call {told.slowest_s:.2f} s,",
            retries(told),
        )


async def run_kills(kind: str, kills: int, seed: int) -> None:
    with database(kind) as (url, _), started(url, 1) as (server,):
        await server.ready()
        await register(server.address)
        begun = time.monotonic()
        chance = random.Random(seed)
        told, watcher = await load_through(
            server.address, lambda told: kill_and_restart(server, kills, chance, told)
        )
        await verify(server.address, told, watcher)
        told_of("kill -9", kind, kills, begun, told, watcher)


async def run_crashes(crashes: int, seed: int) -> None:
    with database("postgresql") as (url, crash), started(url, 1) as (server,):
        await server.ready()
        await register(server.address)
        begun, chance = time.monotonic(), random.Random(seed)

        async def disturb(told: Told) -> None:
            for _ in range(crashes):
                await under_way(told, chance)
                await crash()
            await under_way(told, chance)

        told, watcher = await load_through(server.address, disturb)
        await verify(server.address, told, watcher)
        told_of("crash", "postgresql", crashes, begun, told, watcher)


def run_stories(kind: str, examples: int, steps: int) -> None:
    begun = time.monotonic()
    with database(kind) as (url, _), world(url if kind == "postgresql" else "") as opened:
        explore(opened, examples, steps, is_thorough=True)
    seconds = time.monotonic() - begun
    report(f"stories   {kind:<10} {examples} x {steps} calls in {seconds:.0f} s, all as the model says")


def told_of(what: str, kind: str, times: int, begun: float, told: Told, watcher: Watcher) -> None:
    report(
        f"{what:<9} {kind:<10} {times} times in {time.monotonic() - begun:.0f} s; acknowledged:",
        f"{len(told.made)} bumps, {len(told.moved)} alias moves, {len(told.measured)} metrics,",
        f"{len(told.uploaded)} uploads; {watcher.resumed} times resumed over {len(watcher.seen)} events;",
        retries(told),
    )


def retries(told: Told) -> str:
    codes: Counter[str] = Counter()
    for reason, number in told.retries.items():
        codes[reason.partition(" ")[0]] += number
    return f"{codes.total()} retries {dict(codes) if codes else ''}".strip()


def report(*parts: str) -> None:
    print(" ".join(parts), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bumps", type=int, default=500)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--crashes", type=int, default=10)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--database", choices=KINDS, help="default: both")
    options = parser.parse_args()
    for chosen in [options.database] if options.database else KINDS:
        if options.bumps:
            for count in (1, 2):
                asyncio.run(run_race(chosen, count, options.writers, options.bumps))
        if options.kills:
            asyncio.run(run_kills(chosen, options.kills, options.seed))
        if options.crashes and chosen == "postgresql":
            asyncio.run(run_crashes(options.crashes, options.seed))
        if options.examples:
            run_stories(chosen, options.examples, options.steps)
