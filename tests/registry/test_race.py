"""Many callers at once, in one server process and in two over the same database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry.faults import Server, Told, race, read_behind, register, repeat_at_once, servers, verify

WRITERS = 8
BUMPS = 25


@pytest.fixture
async def two(database_url: str, tmp_path: Path) -> AsyncIterator[list[Server]]:
    """Two processes over one database, with a model in it."""
    with servers(tmp_path, database_url, 2) as running:
        for server in running:
            await server.ready()
        await register(running[0].address)
        yield running
        assert not [fault for server in running for fault in server.faults()]


@pytest.mark.parametrize("processes", [1, 2])
async def test_writers_at_once_make_one_line_of_versions(two: list[Server], processes: int):
    addresses = [server.address for server in two[:processes]]

    told, _ = await race(addresses, WRITERS, BUMPS)

    assert len(told.made) == WRITERS * BUMPS
    # Not one call failed, not even once: nobody had to retry.
    assert not told.retries
    await verify(addresses[-1], told)


async def test_callers_who_give_up_early_and_ask_again_make_nothing_twice(two: list[Server]):
    addresses = [server.address for server in two]

    told, _ = await race(addresses, WRITERS, bumps=10, first_timeout_s=0.05)

    assert len(told.made) == WRITERS * 10
    assert {reason.partition(" ")[0] for reason in told.retries} == {"DEADLINE_EXCEEDED"}
    await verify(addresses[0], told)


async def test_a_request_that_arrives_many_times_at_once_is_done_once(two: list[Server]):
    told = Told()
    for _ in range(3):
        answers = await repeat_at_once([server.address for server in two], times=12)
        assert answers == answers[:1] * 12
        told.made.append(answers[0])

    await verify(two[0].address, told)


async def test_what_one_process_acknowledged_another_reads(two: list[Server]):
    await read_behind([server.address for server in two], readers=4, moves=25)
