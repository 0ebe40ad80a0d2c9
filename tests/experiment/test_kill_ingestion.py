from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from experiment.intake import Intake, exposure, intake, sample
from neuroweaver.experiment.store import Store
from neuroweaver.mesh.database import Database

BATCHES = 400
SIZE = 10


def batch(number: int):
    unit, variant = f"u{number % 7}", ["control", "tuned"][number % 2]
    told = [exposure(f"e{number}", unit, variant, 1 + number % 5)]
    return [*told, *(sample(f"s{number}-{each}", unit, each + 0.25, 3) for each in range(SIZE - 1))]


async def feed(database_url: str) -> None:
    """What the process that is killed does: says the number of each batch once it is durable."""
    database = Database(database_url, schema="experiment")
    events = Intake(database, Store(database))
    for number in range(BATCHES):
        await events.take(*batch(number))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


@pytest.mark.parametrize("after", [3, 20, 45])
async def test_what_was_acknowledged_survives_a_kill_and_the_statistics_agree(database_url, after):
    async with intake(database_url) as events:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "experiment.test_kill_ingestion",
            database_url,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        acknowledged = -1
        async for line in process.stdout:
            acknowledged = int(line)
            if acknowledged == after:
                # Somewhere within the next batch.
                await asyncio.sleep(0.003 * (after % 4))
                process.kill()
        assert await process.wait() == -9

        found = await events.recomputed()
        assert found.differences == []
        # Whole batches alone, and all that were acknowledged.
        assert found.events % SIZE == 0
        assert found.events >= (acknowledged + 1) * SIZE
        assert (await events.snapshot()).quality.accepted == found.events
        again = [await events.take(*batch(number)) for number in range(after + 5)]
        assert sum(each.accepted for each in again) == (after + 5) * SIZE - min(
            found.events, (after + 5) * SIZE
        )
        assert (await events.recomputed()).differences == []


if __name__ == "__main__":
    asyncio.run(feed(sys.argv[1]))
