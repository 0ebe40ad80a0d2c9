"""How long GetModel takes while writers work, at first alone and then beside hostile clients.

    python bench/registry_hostile.py [--seconds 20]

The Registry's part of bench/robustness.py, without faults: one Registry over a PostgreSQL of its own, two
writers and three callers on the same aliases; the hostile clients send models of 20,000 tags, leave 40
downloads unread and uploads half done, and hold 200 watches. Quiet and hostile are of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# In place of this folder, whose registry.py would hide the tests' folder of that name.
sys.path[0] = str(Path(__file__).parents[1] / "tests")

from e2e.storm import contention  # noqa: E402
from e2e.storm.hostile import Hostile  # noqa: E402
from e2e.storm.record import Record, percentile  # noqa: E402
from neuroweaver.v1 import registry_pb2 as pb  # noqa: E402
from registry import faults  # noqa: E402
from registry.calls import create, register, safetensors, upload  # noqa: E402

FILE_BYTES = 8 * 1024 * 1024


class Hostiles(Hostile):
    async def many_tags(self) -> None:
        model = pb.Model(model_id="many", tags={f"t{number}": "" for number in range(20_000)})
        await self._raw("registry", "RegisterModel", pb.RegisterModelRequest(model=model).SerializeToString())

    async def run(self) -> None:
        kinds = (
            (self.many_tags, 1.0),
            (self.unread_downloads, 3.0),
            (self.stalled_uploads, 3.0),
            (self.idle_watches, 0.0),
        )
        async with asyncio.TaskGroup() as group:
            for kind, pause_s in kinds:
                group.create_task(self._repeat(kind, pause_s))


async def timed(registry: Any, seconds: float) -> list[float]:
    """Milliseconds of calls, ascending."""
    found, end = [], time.monotonic() + seconds
    while (begun := time.monotonic()) < end:
        await registry.GetModel(pb.GetModelRequest(model_id=contention.MODEL), timeout=60)
        found.append(1000 * (time.monotonic() - begun))
        await asyncio.sleep(0.1)
    return sorted(found)


async def main(seconds: float) -> None:
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="nw-hostile-"))
        url, _ = stack.enter_context(faults.crashing_postgres())
        (server,) = stack.enter_context(faults.servers(Path(home), url))
        await server.ready()
        async with faults.client(server.address) as registry:
            await register(registry)
            await register(registry, contention.MODEL)
            file = await upload(registry, safetensors(os.urandom(FILE_BYTES)))
            await create(registry, "1.0.0", artifacts=[file])
            stop, told, history = asyncio.Event(), faults.Told(), contention.History()
            async with asyncio.TaskGroup() as group:
                for number in range(2):
                    drawn = random.Random(number)
                    writer = faults.Writer(f"w{number}", server.address, told, stop, drawn)
                    group.create_task(writer.run())
                for number in range(3):
                    group.create_task(contention.contend(registry, history, number, stop))
                quiet = await timed(registry, seconds)
                hostile = Hostiles(
                    {"registry": server.address}, "", ("advisor", "1.0.0", file.path), Record(5.0), stop
                )
                group.create_task(hostile.run())
                loaded = await timed(registry, seconds)
                stop.set()
        for name, found in (("quiet", quiet), ("hostile", loaded)):
            print(f"{name:8} p50 {percentile(found, 50):5.0f} ms, p99 {percentile(found, 99):5.0f} ms")
        print(f"p99 ratio {percentile(loaded, 99) / percentile(quiet, 99):.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    asyncio.run(main(parser.parse_args().seconds))
