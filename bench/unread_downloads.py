"""What downloads that nobody reads hold of the Registry's memory, and how long others wait meanwhile.

    python bench/unread_downloads.py [--downloads 300] [--connections 6]

A file of 64 MiB is asked for so often at once and never read. Memory is the resident size of the Registry's
process (Linux); the calls beside are GetModel, ten a second. Quiet and loaded are of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
import grpc
import psutil

from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub

# In place of this folder, whose registry.py is another one than the tests' registry.
sys.path[0] = str(Path(__file__).parents[1] / "tests")
from e2e.storm.record import percentile  # noqa: E402
from registry.calls import create, register, safetensors, upload  # noqa: E402
from registry.faults import client, servers  # noqa: E402

MIB = 1024 * 1024
SECONDS = 20.0
# Each client a connection of its own, with the window that it begins with.
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0))


async def watched(registry: Any, process: psutil.Process) -> tuple[list[float], int]:
    """Seconds of calls, ascending, and the most that the process held, in MiB."""
    seconds, most, end = [], 0, time.monotonic() + SECONDS
    while (begun := time.monotonic()) < end:
        await registry.GetModel(pb.GetModelRequest(model_id="advisor"), timeout=30)
        seconds.append(time.monotonic() - begun)
        most = max(most, process.memory_info().rss)
        await asyncio.sleep(0.1)
    return sorted(seconds), round(most / MIB)


def told(name: str, seconds: list[float], resident_mib: int) -> None:
    median, worst = (1000 * percentile(seconds, share) for share in (50, 99))
    print(
        f"{name:8} GetModel p50 {median:.1f} ms, p99 {worst:.1f} ms; at most {resident_mib} MiB", flush=True
    )


async def main(downloads: int, connections: int) -> None:
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nw-unread-")))
        (server,) = stack.enter_context(servers(home, "sqlite:"))
        await server.ready()
        registry = await stack.enter_async_context(client(server.address))
        assert server.process
        process = psutil.Process(server.process.pid)
        await register(registry)
        file = await upload(registry, safetensors(os.urandom(64 * MIB)))
        await create(registry, "1.0.0", artifacts=[file])
        told("quiet", *await watched(registry, process))

        request = pb.DownloadArtifactRequest(model_id="advisor", version="1.0.0", path=file.path)
        calls = []
        for _ in range(connections):
            opened = grpc.aio.insecure_channel(server.address, options=OPTIONS)
            stub = RegistryServiceStub(await stack.enter_async_context(opened))
            calls += [stub.DownloadArtifact(request) for _ in range(downloads // connections)]
        told("unread", *await watched(registry, process))
        answers = Counter([(await call.code()).name if call.done() else "open" for call in calls])
        print(
            f"{len(calls)} downloads:", ", ".join(f"{number} {answer}" for answer, number in answers.items())
        )
        for call in calls:
            call.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--downloads", type=int, default=300)
    parser.add_argument("--connections", type=int, default=6)
    options = parser.parse_args()
    asyncio.run(main(options.downloads, options.connections))
