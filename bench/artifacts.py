"""What the Registry's artifacts cost: an upload and a download beside `cp` and `sha256sum` of the same file.

    python bench/artifacts.py [--size-mib 1024] [--rounds 3] [--folder DIR]

Every round does all of it by turns on one disk, so that all see the same machine, and ratios are taken
within a round: the commands; the Registry in its own process, which gets a file of safetensors that it has
not stored, and gives it back into a file; and a bare gRPC stream of as many bytes, which nobody writes or
hashes. Both ends check the digest: the Registry while it receives and while it sends, the client while it
receives. What the client needs before it sends, to know the digest, is printed by itself. Linux only: memory
and CPU time are read from /proc.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import uvloop

from neuroweaver.mesh.wire.channel import sync_channel
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub

MIB = 1 << 20
CHUNK_BYTES = MIB  # as the clients send, and the Registry
MODEL = "bench"

Process = subprocess.Popen[bytes]
Found = dict[str, list[float]]


def write_safetensors(path: Path, size: int) -> None:
    """One tensor of random bytes, `size` bytes in all."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for begin in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - begin)))
        file.flush()
        os.fsync(file.fileno())


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Commands:
    """`cp`, `sha256sum` and `sync`."""

    def __init__(self, source: Path, copy: Path) -> None:
        self._source = source
        self._copy = copy

    def copy_and_check(self) -> None:
        subprocess.run(["cp", self._source, self._copy], check=True)
        subprocess.run(["sha256sum", self._copy], check=True, stdout=subprocess.DEVNULL)

    def copy_sync_and_check(self) -> None:
        subprocess.run(["cp", self._source, self._copy], check=True)
        subprocess.run(["sync", self._copy], check=True)
        subprocess.run(["sha256sum", self._copy], check=True, stdout=subprocess.DEVNULL)

    def copy_and_hash_here(self) -> None:
        """With OpenSSL's SHA-256, which uses the processor's own instructions where it has them."""
        subprocess.run(["cp", self._source, self._copy], check=True)
        digest_of(self._copy)


class Registry:
    """One client's view of a Registry, and of one file."""

    def __init__(self, address: str, source: Path, home: Path, copy: Path) -> None:
        self._registry = RegistryServiceStub(sync_channel(address))
        self._source = source
        self._home = home
        self._copy = copy
        self._artifact = pb.Artifact(
            path="w.safetensors", digest=digest_of(source), size_bytes=source.stat().st_size
        )

    def forget(self) -> None:
        """What is stored already would not be sent again."""
        shutil.rmtree(self._home / "artifacts" / "sha256" / self._artifact.digest[:2], ignore_errors=True)

    def upload(self) -> None:
        assert self._registry.UploadArtifact(self._parts()).is_complete

    def create(self) -> None:
        self._registry.RegisterModel(pb.RegisterModelRequest(model=pb.Model(model_id=MODEL)))
        self._registry.CreateModelVersion(
            pb.CreateModelVersionRequest(model_id=MODEL, artifacts=[self._artifact])
        )

    def download(self) -> None:
        """As `neuroweaver model download` does it."""
        digest = hashlib.sha256()
        request = pb.DownloadArtifactRequest(model_id=MODEL, version="latest", path=self._artifact.path)
        with self._copy.open("wb") as file:
            for part in self._registry.DownloadArtifact(request):
                chunk = part.chunk
                digest.update(chunk)
                file.write(chunk)
        assert digest.hexdigest() == self._artifact.digest

    def _parts(self) -> Iterator[pb.UploadArtifactRequest]:
        header = pb.UploadHeader(
            digest=self._artifact.digest, size_bytes=self._artifact.size_bytes, path=self._artifact.path
        )
        yield pb.UploadArtifactRequest(header=header)
        with self._source.open("rb", buffering=0) as source:
            while chunk := source.read(CHUNK_BYTES):
                yield pb.UploadArtifactRequest(chunk=chunk)


class Bare:
    """As many bytes over gRPC, in messages of the same size, and nothing else."""

    def __init__(self, address: str, size: int) -> None:
        channel = sync_channel(address)
        self._up = channel.stream_unary("/bare/Up")
        self._down = channel.unary_stream("/bare/Down")
        self._size = size

    def upload(self) -> None:
        chunk = os.urandom(CHUNK_BYTES)
        self._up(chunk for _ in range(self._size // CHUNK_BYTES))

    def download(self) -> None:
        for _ in self._down(str(self._size // CHUNK_BYTES).encode()):
            pass


async def serve_bare() -> None:
    chunk = os.urandom(CHUNK_BYTES)

    async def up(requests: Any, _context: Any) -> bytes:
        async for _ in requests:
            pass
        return b""

    async def down(request: bytes, context: Any) -> None:
        for _ in range(int(request)):
            await context.write(chunk)

    options = [("grpc.max_receive_message_length", 4 * MIB), ("grpc.max_send_message_length", 4 * MIB)]
    server = grpc.aio.server(options=options)
    handlers = {
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Down": grpc.unary_stream_rpc_method_handler(down),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bare", handlers)])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


@contextmanager
def bare_server() -> Iterator[str]:
    with subprocess.Popen([sys.executable, __file__, "--serve-bare"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


@contextmanager
def registry_server(home: Path, log: Any) -> Iterator[tuple[Process, str]]:
    port = free_port()
    environment = os.environ | {
        "NEUROWEAVER_HOME": str(home),
        "NEUROWEAVER_REGISTRY_PORT": str(port),
        "NEUROWEAVER_REGISTRY_METRICS_PORT": str(free_port()),
        "NEUROWEAVER_LOG_FORMAT": "json",
    }
    command = [sys.executable, "-m", "neuroweaver.registry"]
    with subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            with sync_channel(f"127.0.0.1:{port}") as channel:
                ready = grpc.channel_ready_future(channel)
                while not ready.done():
                    if process.poll() is not None:
                        raise SystemExit(f"the Registry does not start: {Path(log.name).read_text()}")
                    time.sleep(0.05)
            yield process, f"127.0.0.1:{port}"
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def memory_mib(process: Process, field: str) -> float:
    """`VmRSS`: now; `VmHWM`: the most since `forget_peak`."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def forget_peak(process: Process) -> None:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def cpu_s(process: Process) -> float:
    """CPU time of all threads so far; those that ended count for nothing."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def timed(step: Callable[[], object]) -> float:
    os.sync()  # nobody pays for what another one left to be written
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def measure(folder: Path, size: int, rounds: int) -> tuple[Found, Found]:
    """Seconds by step, and what the server took by direction: CPU seconds, MiB of memory above its start."""
    source, copy, home = folder / "source.safetensors", folder / "copy", folder / "home"
    write_safetensors(source, size)
    commands = Commands(source, copy)
    with (
        (folder / "log").open("wb") as log,
        registry_server(home, log) as (process, address),
        bare_server() as bare_address,
    ):
        registry = Registry(address, source, home, copy)
        bare = Bare(bare_address, size)
        registry.upload()
        registry.create()
        registry.download()  # warm
        rested = memory_mib(process, "VmRSS")
        steps: dict[str, Callable[[], object]] = {
            "cp + sha256sum": commands.copy_and_check,
            "cp + sync + sha256sum": commands.copy_sync_and_check,
            "cp + OpenSSL's SHA-256": commands.copy_and_hash_here,
            "client's digest": lambda: digest_of(source),
            "upload": registry.upload,
            "download": registry.download,
            "bare upload": bare.upload,
            "bare download": bare.download,
        }
        seconds: Found = {name: [] for name in steps}
        server: Found = {f"{name} {of}": [] for name in ("upload", "download") for of in ("CPU s", "MiB")}
        for _ in range(rounds):
            for name, step in steps.items():
                copy.unlink(missing_ok=True)
                if name == "upload":
                    registry.forget()
                forget_peak(process)
                before = cpu_s(process)
                seconds[name].append(timed(step))
                if name in {"upload", "download"}:
                    server[f"{name} CPU s"].append(cpu_s(process) - before)
                    server[f"{name} MiB"].append(memory_mib(process, "VmHWM") - rested)
    return seconds, server


def machine() -> str:
    model = next(
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return f"{model}, {os.cpu_count()} cores, Linux {os.uname().release}"


def report(size: int, seconds: Found, server: Found) -> None:
    print(f"{'':<40} median   least    most")
    for name, rounds in seconds.items():
        print(
            f"{name + ', seconds':<40} {spread(rounds)}  {size / MIB / statistics.median(rounds):6.0f} MiB/s"
        )
    for way in ("upload", "download"):
        for other in ("cp + sha256sum", "cp + sync + sha256sum", "cp + OpenSSL's SHA-256", f"bare {way}"):
            ratios = [ours / theirs for ours, theirs in zip(seconds[way], seconds[other], strict=True)]
            print(f"{f'{way} / {other}':<40} {spread(ratios)}")
    for name, rounds in server.items():
        print(f"{f'server, {name}':<40} {spread(rounds)}")


def spread(rounds: list[float]) -> str:
    return f"{statistics.median(rounds):6.2f}  {min(rounds):6.2f}  {max(rounds):6.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder")
    parser.add_argument("--serve-bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_bare:
        uvloop.run(serve_bare())
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            print(f"{options.size_mib} MiB, medians of {options.rounds} rounds on {machine()}")
            found = measure(Path(temporary), options.size_mib * MIB, options.rounds)
        report(options.size_mib * MIB, *found)
