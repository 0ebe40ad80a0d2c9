"""Worlds to test in: versions with made-up files, a Registry that hands them out, desired states, and a patient eye."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import psutil
from google.protobuf.duration_pb2 import Duration

from neuroweaver.artifacts.file import File
from neuroweaver.deployer.domain.backend import Bundle, DesiredRevision, DesiredState, Key, Observed
from neuroweaver.deployer.local import routes
from neuroweaver.deployer.local.backend import LocalBackend, LocalSettings, local_backend
from neuroweaver.deployer.local.front import program
from neuroweaver.deployer.local.front.process import FOLDER
from neuroweaver.deployer.local.machine.machine import Machine
from neuroweaver.v1 import deployer_pb2 as pb

FAKE = (sys.executable, "-S", str(Path(__file__).with_name("fake_server.py")))
KEY = Key("default", "advisor", "default")
NAME = "default-advisor-default"
READY = pb.REPLICA_PHASE_READY
PATIENCE_S = 60.0
GIB = 1 << 30


class FakeRegistry:
    """Files by digest, handed out in pieces."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.fetched: list[str] = []

    async def fetch(self, file: File) -> AsyncIterator[bytes]:
        self.fetched.append(file.path)
        return self._chunks(self.contents[file.digest])

    async def _chunks(self, content: bytes) -> AsyncIterator[bytes]:
        for begin in range(0, len(content), 1000):
            yield content[begin : begin + 1000]

    def bundle(self, version: str = "1.0.0", *, base: str = "", **behaviour: Any) -> Bundle:
        contents = {"behaviour.json": json.dumps(behaviour).encode(), "weights/a.bin": version.encode() * 500}
        files = []
        for path, content in contents.items():
            digest = hashlib.sha256(content).hexdigest()
            self.contents[digest] = content
            files.append(File(path, digest, len(content)))
        digest = hashlib.sha256("".join(file.digest for file in files).encode()).hexdigest()
        return Bundle(
            version, tuple(files), digest, base, hashlib.sha256(base.encode()).hexdigest() if base else ""
        )


def big_machine(cores: float = 64, memory_bytes: int = 64 * GIB, gpus: tuple[str, ...] = ()) -> Machine:
    return Machine(cores, memory_bytes, lambda: memory_bytes, gpus)


def spec(**fields: Any) -> pb.DeploymentSpec:
    made = pb.DeploymentSpec(
        backend=pb.DEPLOYMENT_BACKEND_LOCAL,
        resources=pb.ReplicaResources(cpu_request="1", memory_request="1Gi"),
        startup_timeout=Duration(seconds=60),
        drain_timeout=Duration(seconds=20),
    )
    made.MergeFrom(pb.DeploymentSpec(**fields))
    return made


def wanted(*revisions: DesiredRevision, mode: int = 0, generation: int = 1, **fields: Any) -> DesiredState:
    return DesiredState(
        KEY, NAME, spec(**fields), revisions, pb.ReplacementMode.ValueType(mode), generation=generation
    )


def revision(
    bundle: Bundle,
    number: int = 1,
    replicas: int = 1,
    weight: int = 100,
    autoscaling: pb.Autoscaling | None = None,
) -> DesiredRevision:
    return DesiredRevision(number, bundle, replicas, weight, autoscaling)


@dataclass
class World:
    backend: LocalBackend
    registry: FakeRegistry
    settings: LocalSettings
    client: httpx2.AsyncClient
    seen: list[Observed] = field(default_factory=list)

    async def observe(self) -> Observed:
        observed = await self.backend.observe(KEY, NAME, spec())
        self.seen.append(observed)
        return observed

    async def until(self, is_so: Callable[[Observed], object]) -> Observed:
        """The first observation of which that is true; fails after a minute."""
        give_up = asyncio.get_running_loop().time() + PATIENCE_S
        while not is_so(observed := await self.observe()):
            assert asyncio.get_running_loop().time() < give_up, observed
            await asyncio.sleep(0.02)
        return observed

    async def serve(self, desired: DesiredState) -> Observed:
        """Applies it and waits until it is carried out and everything is ready."""
        await self.backend.apply(desired)
        return await self.until(lambda observed: is_whole(observed, desired))

    async def ask(self, conversation: str = "", **body: Any) -> httpx2.Response:
        headers = {"x-conversation-id": conversation} if conversation else {}
        url = f"{self.backend.endpoint(KEY)}/chat/completions"
        return await self.client.post(
            url, json={"model": "advisor", **body}, headers=headers, timeout=PATIENCE_S
        )

    async def gone(self) -> None:
        give_up = asyncio.get_running_loop().time() + PATIENCE_S
        while not await self.backend.remove(KEY, NAME, spec()):
            assert asyncio.get_running_loop().time() < give_up
            await asyncio.sleep(0.02)


def is_whole(observed: Observed, desired: DesiredState) -> bool:
    numbers = {each.number for each in desired.revisions}
    ready = [each for each in observed.replicas if each.phase == READY and each.revision in numbers]
    return observed.applied_generation == desired.generation and len(ready) == len(observed.replicas) == sum(
        observed.desired.values()
    )


async def no_base(name: str, digest: str) -> Path:
    return Path("/")


def settings(home: Path, **changes: Any) -> LocalSettings:
    """With a router in this process, which is there at once; `deployer_process` has the real one."""
    made = LocalSettings(
        home=home,
        port=0,
        command=FAKE,
        probe_s=0.1,
        wedge_grace_s=1.0,
        shutdown_s=10.0,
        start_router=RouterTask.start,
    )
    return replace(made, **changes)


class RouterTask:
    """The router's program as a task; `front.process.Running`."""

    @classmethod
    async def start(cls, config: Path, environ: Mapping[str, str], log: Path) -> RouterTask:
        return cls(config)

    def __init__(self, config: Path) -> None:
        self._stop = asyncio.Event()
        chosen = routes.read(config)
        assert chosen is not None
        self._task = asyncio.create_task(program.serve(chosen, config.parent, self._stop))

    @property
    def has_ended(self) -> bool:
        return self._task.done()

    def terminate(self) -> None:
        self._stop.set()

    def kill(self) -> None:
        self._task.cancel()


@asynccontextmanager
async def world(home: Path, machine: Machine | None = None, **changes: Any) -> AsyncIterator[World]:
    registry, chosen = FakeRegistry(), settings(home, **changes)
    async with (
        httpx2.AsyncClient(trust_env=False) as client,
        local_backend(chosen, registry.fetch, no_base, machine=machine or big_machine()) as backend,
    ):
        yield World(backend, registry, chosen, client)


def servers(home: Path) -> list[int]:
    """The fake servers of this home that run, by pid."""
    return processes_of(home, lambda word: f"/{FOLDER}/" not in word)


def routers(home: Path) -> list[int]:
    """Its routers that run as processes."""
    return processes_of(home, lambda word: f"/{FOLDER}/" in word)


def processes_of(home: Path, is_meant: Callable[[str], bool]) -> list[int]:
    """By their configuration file."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words, is_alive = process.cmdline(), process.status() != psutil.STATUS_ZOMBIE
            if (
                is_alive
                and "--config" in words
                and any(str(home) in word and is_meant(word) for word in words)
            ):
                found.append(process.pid)
    return sorted(found)


def children_environment() -> dict[str, str]:
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
