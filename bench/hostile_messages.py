"""What the most expensive requests cost a service before its handler sees them.

    python bench/hostile_messages.py

For every RPC, and for 64 KiB, 1 MiB and 4 MiB: a flood of each of its repeated fields, of fields that nobody
knows, a text of that length, and the largest lists that its rules allow. Each is decoded and checked as by a
server, beside a loop that ticks. Shown are the worst of each size, the better of two tries each: the longest
that the loop stood still, its own CPU time, that of all threads, and the most memory, in multiples of the
message. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import uvloop
from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass

from neuroweaver.mesh.server.decoding import Decoder
from neuroweaver.mesh.server.stack import Method
from neuroweaver.mesh.server.validation import validated
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.v1 import experiment_pb2, registry_pb2

# In the place of this folder, whose `mesh.py` is another.
sys.path[0] = str(Path(__file__).parents[1] / "tests")
from mesh.hostile import REQUESTS, flooded, framed, is_text, paths, shown, varint  # noqa: E402

SIZES = {"64 KiB": 64 * 1024, "1 MiB": 1024 * 1024, "4 MiB": 4 * 1024 * 1024 - 64}
TICK_S = 0.01
UNKNOWN = varint(2047 << 3) + b"\0"
METHOD = Method("bench", is_request_stream=False, is_response_stream=False)


@dataclass(frozen=True)
class Cost:
    name: str
    stall_s: float
    loop_cpu_s: float
    cpu_s: float
    memory: float


def floods(kind: Descriptor, size: int) -> Iterator[tuple[str, bytes]]:
    yield "unknown fields", UNKNOWN * (size // len(UNKNOWN))
    texts = [path for path in paths(kind) if is_text(path[-1])]
    yield from ((shown(path), framed(path, b"x" * size)) for path in texts[:1])
    repeated = [path for path in paths(kind) if path[-1].is_repeated]
    yield from ((shown(path), flooded(path, size)) for path in repeated)


def largest(size: int) -> Iterator[tuple[Descriptor, str, bytes]]:
    """What the rules allow, or come close to it."""
    event = {"event_id": "e" * 20, "test_id": "t", "unit_id": "u" * 20, "metric": {"name": "m", "value": 0.5}}
    rows = experiment_pb2.RecordEventsRequest(rows={"events": [event] * 1000})
    for row in rows.rows.events:
        row.event_time.seconds = 1_700_000_000
    yield rows.DESCRIPTOR, "1000 events", rows.SerializeToString()
    batch = experiment_pb2.BatchAssignVariantsRequest()
    per_unit = min(64, size // 1000 // 20)
    for unit in range(1000):
        attributes = batch.requests.add(test_id="t", unit_id=f"{unit}").attributes
        for index in range(per_unit):
            attributes[f"name{index}"].number_value = index
    yield batch.DESCRIPTOR, "attributes of 1000 units", batch.SerializeToString()
    version = registry_pb2.CreateModelVersionRequest(model_id="m")
    for index in range(min(1000, size // 8 // 16)):
        version.metrics[f"{index}"].samples.extend([0.5] * min(500, max(1, (size // 1000 - 16) // 8)))
    yield version.DESCRIPTOR, "metrics with samples", version.SerializeToString()
    version = registry_pb2.CreateModelVersionRequest(model_id="m")
    for index in range(min(10_000, size // 100)):
        version.artifacts.add(path=f"{index}.json", digest="0" * 64, size_bytes=1)
    yield version.DESCRIPTOR, "artifacts", version.SerializeToString()
    version = registry_pb2.CreateModelVersionRequest(model_id="m")
    version.config.update({"a": [0.5] * min(10_000, size // 11 - 10)})
    yield version.DESCRIPTOR, "config", version.SerializeToString()


async def cost(name: str, kind: Descriptor, data: bytes) -> Cost:
    decoder = Decoder(GetMessageClass(kind).FromString, [lambda message: validated(METHOD, message)])
    tries = [await tried(decoder, data) for _ in range(2)]
    return Cost(name, *map(min, zip(*tries, strict=True)))


async def tried(decoder: Decoder, data: bytes) -> tuple[float, ...]:
    gaps: list[float] = []
    ticking = asyncio.create_task(tick(gaps))
    await asyncio.sleep(2 * TICK_S)
    gaps.clear()
    before, started, own = reset_peak(), time.process_time(), time.thread_time()
    with suppress(InvalidArgument):
        await decoder(data)
    loop_cpu_s, cpu_s = time.thread_time() - own, time.process_time() - started
    memory = (peak() - before) / len(data)
    await asyncio.sleep(2 * TICK_S)
    ticking.cancel()
    return max(gaps) - TICK_S, loop_cpu_s, cpu_s, memory


async def tick(gaps: list[float]) -> None:
    last = time.perf_counter()
    while True:
        await asyncio.sleep(TICK_S)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now


def reset_peak() -> int:
    """Bytes held now, from which on the peak is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


async def main() -> None:
    for label, size in SIZES.items():
        costs = [
            await cost(f"{kind.name} {name}", kind, data)
            for kind in REQUESTS.values()
            for name, data in floods(kind, size)
        ]
        costs += [await cost(f"{kind.name} {name}", kind, data) for kind, name, data in largest(size)]
        print(f"{label}: {len(costs)} messages")
        for what in ("stall_s", "loop_cpu_s", "cpu_s", "memory"):
            worst = sorted(costs, key=lambda each: getattr(each, what), reverse=True)[:3]
            print(f"  {what}: " + "; ".join(f"{getattr(each, what):.3f} {each.name}" for each in worst))


if __name__ == "__main__":
    uvloop.run(main())
