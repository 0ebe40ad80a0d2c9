"""What the mesh costs: a server's CPU time an RPC, with the interceptor and without it.

    python bench/mesh.py [--rounds 20] [--calls 500]

Two processes serve the same echo of a registry request, one bare, one with the whole interceptor (trace,
access log as JSON to a file, metrics, deadline, validation). One client calls them by turns, so that both see
the same machine. Linux only: CPU time is read from /proc.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import uvloop

from neuroweaver.mesh.server import logs
from neuroweaver.mesh.server.drain import Drain
from neuroweaver.mesh.server.interceptors import server_interceptor
from neuroweaver.mesh.wire import telemetry
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.v1 import registry_pb2, registry_pb2_grpc

Servers = dict[str, "subprocess.Popen[bytes]"]
Found = dict[str, list[tuple[float, float]]]


class Echo(registry_pb2_grpc.RegistryServiceServicer):
    async def GetModel(self, request, _context):  # noqa: N802
        return registry_pb2.Model(model_id=request.model_id, description="a model")


async def serve(kind: str) -> None:
    logs.configure("bench", log_format="json")
    telemetry.start("bench")
    interceptors = [server_interceptor(Drain(), deadline_s=60, silence_s=60)] if kind == "meshed" else []
    server = grpc.aio.server(interceptors=interceptors)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(Echo(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    gc.freeze()  # as mesh.serve does
    await server.wait_for_termination()


@contextmanager
def servers(*kinds: str) -> Iterator[Servers]:
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, __file__, "--serve"]
        started = {
            kind: subprocess.Popen([*command, kind], stdout=subprocess.PIPE, stderr=log) for kind in kinds
        }
        try:
            yield started
        finally:
            for server in started.values():
                server.terminate()
                server.wait()


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process so far."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


async def measure(pid: int, call: Any, calls: int) -> tuple[float, float]:
    """Microseconds an RPC: the server's CPU, and the time from call to answer at the median."""
    request = registry_pb2.GetModelRequest(model_id="service-advisor")
    before, waits = cpu_s(pid), []
    for _ in range(calls):
        started = time.perf_counter()
        await call(request)
        waits.append(time.perf_counter() - started)
    return (cpu_s(pid) - before) / calls * 1e6, statistics.median(waits) * 1e6


async def compare(started: Servers, rounds: int, calls: int) -> Found:
    stubs = {}
    for kind, server in started.items():
        opened = channel(f"127.0.0.1:{int(server.stdout.readline())}")
        stubs[kind] = registry_pb2_grpc.RegistryServiceStub(opened).GetModel
        await measure(server.pid, stubs[kind], calls)  # warm
    found: Found = {kind: [] for kind in started}
    for _ in range(rounds):
        for kind, server in started.items():
            found[kind].append(await measure(server.pid, stubs[kind], calls))
    return found


def report(found: Found) -> None:
    for kind, pairs in found.items():
        cpu, wait = (statistics.median(column) for column in zip(*pairs, strict=True))
        least = min(pair[0] for pair in pairs)
        print(f"{kind:<7} {cpu:5.0f} µs CPU an RPC (least {least:.0f}), {wait:5.0f} µs from call to answer")
    ratios = [meshed[0] / bare[0] for bare, meshed in zip(found["bare"], found["meshed"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"ratio of CPU: {middle:.2f} (quartiles {low:.2f} and {high:.2f} of {len(ratios)} rounds)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--serve", choices=("bare", "meshed"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(options.serve))
    else:
        with servers("bare", "meshed") as both:
            report(uvloop.run(compare(both, options.rounds, options.calls)))
