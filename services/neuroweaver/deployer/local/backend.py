"""Deployments as processes of this machine, behind one router, which is a process too."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx2

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.domain.backend import (
    BackendPlan,
    DesiredState,
    FetchFile,
    Key,
    Line,
    Measured,
    Observed,
)
from neuroweaver.deployer.local import planning
from neuroweaver.deployer.local.files.cache import Cache
from neuroweaver.deployer.local.files.supplies import BaseFolder, Supplies
from neuroweaver.deployer.local.front.metrics import shown
from neuroweaver.deployer.local.front.process import (
    CONFIG,
    FOLDER,
    RELEASE,
    RouterProcess,
    Start,
    Tidings,
    as_process,
)
from neuroweaver.deployer.local.machine.machine import Machine, Room, this_machine
from neuroweaver.deployer.local.planning import Running, Situation
from neuroweaver.deployer.local.replicas import processes
from neuroweaver.deployer.local.replicas.fleet import Fleet
from neuroweaver.deployer.local.replicas.processes import Process
from neuroweaver.deployer.local.replicas.replica import Replica, ReplicaContext
from neuroweaver.deployer.local.routes import Config, Report, Reports, Tables
from neuroweaver.deployer.routing import front
from neuroweaver.deployer.routing.router import UNKEPT
from neuroweaver.mesh.handlers.loop import Outage
from neuroweaver.mesh.machine.processes import module
from neuroweaver.mesh.server.http_limits import HttpLimits
from neuroweaver.v1 import deployer_pb2 as pb

_LOG: Final = logging.getLogger(__name__)

PORT: Final = 8100
_BLOBS: Final = "blobs"
_RESOURCE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SWEEP_S: Final = 60.0
_NOT_GONE_S: Final = 1.0
# By then the deployer has looked at every deployment that it knows, unless its database is away.
_ADOPTING_S: Final = 300.0
_LAST_DRAIN_S: Final = 2.0
# The model server needs none of the deployer's secrets, such as the URL of its database.
_PASSED_ON: Final = re.compile(
    r"PATH|HOME|LANG|LC_\w+|TZ|TMPDIR|VIRTUAL_ENV|PYTHON\w+|LD_\w+|DYLD_\w+|SSL_CERT_\w+|CUDA_\w+|NVIDIA_\w+"
    r"|OMP_\w+|MKL_\w+|KMP_\w+|TORCH\w*|NEUROWEAVER_HTTP_\w+"
)
# Threads that spin while they wait for each other make work many times slower on a machine that is shared.
_ENVIRON: Final = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """home: state lies in its folder `deployments`. host, port: of the HTTP front; port 0 for any.

    command: starts a model server, `--config FILE` follows. shutdown_s: the most that requests under way get
    when the deployer itself ends. wedge_grace_s: how long a replica that was ready may fail its health check.
    probe_s: between two health checks. wake_s: how long a request waits for a sleeping deployment.
    unused_s: how long files that no deployment names are kept, for a way back without fetching them again.
    limits: of the HTTP front. start_router: the router's process.
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = PORT
    command: Sequence[str] = module("neuroweaver.serving")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    shutdown_s: float = 15.0
    wedge_grace_s: float = 10.0
    probe_s: float = 1.0
    wake_s: float = 120.0
    unused_s: float = 3600.0
    limits: HttpLimits = field(default_factory=HttpLimits)
    start_router: Start = as_process


class LocalBackend:
    """A `Backend`. Made by `local_backend`; only its event loop's thread calls it."""

    def __init__(
        self,
        settings: LocalSettings,
        folder: Path,
        client: httpx2.AsyncClient,
        cache: Cache,
        base_folder: BaseFolder,
        machine: Machine,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._cache = cache
        self._base_folder = base_folder
        self._room = Room(machine)
        self._fleets: dict[str, Fleet] = {}
        self._by_key: dict[Key, Fleet] = {}
        limits = settings.limits
        config = Config(settings.host, settings.port, settings.wake_s, settings.shutdown_s, RELEASE, limits)
        self._adopting_until = 0.0
        self._keeping = Outage("routes")
        self._reports: Mapping[str, Report] = {}
        self._changed: Callable[[Key], None] = lambda _: None
        inherited = {name: value for name, value in settings.environ.items() if _PASSED_ON.fullmatch(name)}
        self._router = RouterProcess(
            folder / FOLDER,
            config,
            _ENVIRON | inherited,
            settings.start_router,
            Tidings(self._tables, self._hear, self._wake),
        )
        self._context = ReplicaContext(
            client=client,
            room=self._room,
            command=settings.command,
            environ=_ENVIRON | inherited,
            settled=self._router.settled,
            wedge_grace_s=settings.wedge_grace_s,
            probe_s=settings.probe_s,
        )

    async def plan(self, wanted: DesiredState) -> BackendPlan:
        fleet = self._fleets.get(_checked(wanted.resource_name))
        replicas = [each for each in fleet.replicas if not each.is_leaving] if fleet else []
        own = [each.replica_id for each in fleet.replicas] if fleet else []
        situation = Situation(
            wanted.resource_name,
            tuple(_running(each) for each in replicas),
            await asyncio.to_thread(self._room.free, besides=own),
            fleet.free_numbers() if fleet else iter(range(1, sys.maxsize)),
        )
        return planning.plan(wanted, situation)

    async def apply(self, wanted: DesiredState) -> None:
        fleet = self._fleets.get(_checked(wanted.resource_name)) or self._new_fleet(wanted.resource_name)
        self._by_key[wanted.key] = fleet
        try:
            fleet.aim_at(wanted)
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise BackendError(
                Trouble.NO_ROOM if is_full else Trouble.NOT_CONFIGURED,
                f"the deployment's state cannot be written: {error.strerror}",
            ) from error
        finally:
            await self._router.settled()

    async def observe(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> Observed:
        del spec
        fleet = self._fleets.get(resource_name)
        await self._router.settled()
        return fleet.observe(self.endpoint(key)) if fleet else Observed()

    async def remove(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> bool:
        fleet = self._fleets.get(_checked(resource_name))
        if fleet is None:
            return True
        fleet.key = key
        if not fleet.remove(spec):
            return False
        del self._fleets[resource_name]
        self._by_key.pop(key, None)
        self._router.touch()
        await self._router.settled()
        await fleet.delete()
        return True

    async def logs(
        self, key: Key, resource_name: str, spec: pb.DeploymentSpec, since: Mapping[str, str]
    ) -> AsyncIterator[Line]:
        del key, spec
        if fleet := self._fleets.get(resource_name):
            async for line in fleet.lines(since):
                yield line

    async def measure(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> Sequence[Measured]:
        del key, spec
        fleet = self._fleets.get(resource_name)
        await self._router.hear()
        return await fleet.measure() if fleet else ()

    async def run(self, changed: Callable[[Key], None]) -> None:
        self._changed = changed
        try:
            while True:
                await asyncio.sleep(_SWEEP_S)
                self._router.sweep()
                if evicted := await self._cache.evict(self._settings.unused_s):
                    _LOG.info("unused artifacts are evicted", extra={"files": evicted})
        finally:
            self._changed = lambda _: None

    def endpoint(self, key: Key) -> str:
        """The base URL of a deployment's OpenAI-compatible interface."""
        return self._router.config.endpoint(key)

    def fleet(self, key: Key) -> Fleet | None:
        return self._by_key.get(key)

    async def begin(self) -> None:
        """Finds what an earlier deployer that was killed has left running, the router too.

        Raises BackendError if there can be no router.
        """
        self._adopting_until = time.monotonic() + _ADOPTING_S
        running = await asyncio.to_thread(processes.found, self._folder)
        for folder in self._folder.iterdir():
            if folder.is_dir() and _RESOURCE.fullmatch(folder.name) and folder.name != _BLOBS:
                self._adopt(folder.name, running)
        try:
            await self._router.begin(running.get(self._folder / FOLDER / CONFIG), self._free_port)
        except OSError as error:
            why = f"the router cannot be started: {error.strerror}"
            raise BackendError(Trouble.NOT_CONFIGURED, why) from error

    async def close(self) -> None:
        """Ends every replica: what the deployer started does not outlive its orderly end.

        The router waits for the calls under way first, so that there is nothing left to drain.
        """
        await self._router.close()
        await asyncio.gather(*(fleet.close(_LAST_DRAIN_S) for fleet in self._fleets.values()))

    def _new_fleet(self, resource_name: str) -> Fleet:
        fleet = Fleet(
            resource_name,
            self._folder / resource_name,
            self._context,
            lambda folder, moved: Supplies(folder, self._cache, self._base_folder, moved),
            self._moved,
            self._router.touch,
        )
        self._fleets[resource_name] = fleet
        return fleet

    def _adopt(self, resource_name: str, running: Mapping[Path, Process]) -> None:
        fleet = self._new_fleet(resource_name)
        fleet.adopt(running)
        if fleet.key is not None:
            self._by_key[fleet.key] = fleet

    def _free_port(self) -> int:
        """That of the settings, or any. Raises BackendError if it is taken."""
        with _listening(self._settings) as listener:
            return int(listener.getsockname()[1])

    def _tables(self) -> Tables:
        """What the router is to know, kept for the next deployer, too."""
        told = []
        for fleet in self._fleets.values():
            if table := fleet.table():
                told.append(table)
                with self._keeping.survived():
                    fleet.keep(table)
        is_early = time.monotonic() < self._adopting_until
        is_whole = len(told) == len(self._fleets) or not is_early
        return Tables(tuple(self._fleets), tuple(told), is_whole)

    def reports(self) -> Mapping[str, Report]:
        """What the router told last, by resource name."""
        return self._reports

    def _hear(self, reports: Reports) -> None:
        self._reports = reports.deployments
        for name, report in reports.deployments.items():
            if fleet := self._fleets.get(name):
                fleet.hear(report)

    def _wake(self, names: Collection[str]) -> None:
        for name in names:
            if fleet := self._fleets.get(name):
                fleet.wake()

    def _moved(self, fleet: Fleet) -> None:
        if fleet.key is not None:
            self._changed(fleet.key)


@asynccontextmanager
async def local_backend(
    settings: LocalSettings, fetch: FetchFile, base_folder: BaseFolder, *, machine: Machine | None = None
) -> AsyncIterator[LocalBackend]:
    """The backend, its front listening; what an earlier deployer left running is found again.

    At the end of the block all replicas are drained and ended. Raises BackendError NOT_CONFIGURED if the port
    is taken, or another deployer works in the same folder.
    """
    folder = settings.home.absolute() / "deployments"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        stack.enter_context(_alone(folder))
        # Proxies of the environment are not for loopback.
        client = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False, limits=UNKEPT))
        cache = Cache(folder / _BLOBS, fetch)
        if machine is None:
            machine = await asyncio.to_thread(this_machine, settings.environ)
        backend = LocalBackend(settings, folder, client, cache, base_folder, machine)
        stack.push_async_callback(backend.close)
        await backend.begin()
        stack.enter_context(shown(backend.reports))
        yield backend


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No second deployer touches the folder, or starts everything twice."""
    with (folder / "lock").open("ab") as lock:
        give_up = time.monotonic() + _NOT_GONE_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                # One that was just killed may hold it for another moment.
                if time.monotonic() > give_up:
                    raise BackendError(
                        Trouble.NOT_CONFIGURED,
                        "another deployer is running in the same NEUROWEAVER_HOME: stop it, or set another",
                    ) from error
                time.sleep(0.05)
        yield


@contextmanager
def _listening(settings: LocalSettings) -> Iterator[socket.socket]:
    try:
        listener = front.listen(settings.host, settings.port)
    except OSError as error:
        raise BackendError(
            Trouble.NOT_CONFIGURED,
            f"the HTTP front cannot listen on {settings.host}:{settings.port}: {error.strerror}; set "
            "NEUROWEAVER_SERVING_PORT to another port",
        ) from error
    with listener:
        yield listener


def _checked(resource_name: str) -> str:
    """It becomes a folder's name."""
    if not _RESOURCE.fullmatch(resource_name) or resource_name == _BLOBS:
        raise BackendError(Trouble.REFUSED, f"{resource_name!r} cannot name a deployment on this machine")
    return resource_name


def _running(replica: Replica) -> Running:
    return Running(replica.replica_id, replica.target, replica.frame, replica.need, replica.description)
