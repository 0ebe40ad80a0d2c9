"""One replica: its process from the start through failures and restarts to a drained end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx2

from neuroweaver.artifacts.serving_config import listed
from neuroweaver.cluster import quantities
from neuroweaver.deployer.domain import backend
from neuroweaver.deployer.domain.failures import explained
from neuroweaver.deployer.local.files.supplies import Places, Supplies
from neuroweaver.deployer.local.machine import gpus
from neuroweaver.deployer.local.machine.machine import Need, Room
from neuroweaver.deployer.local.replicas import log_files, probe, processes, record
from neuroweaver.deployer.local.replicas.launch import HOST, Launch
from neuroweaver.deployer.local.replicas.overuse import overuse
from neuroweaver.deployer.local.replicas.processes import Process
from neuroweaver.deployer.local.replicas.record import Record
from neuroweaver.deployer.local.replicas.restarts import Failures, Policy
from neuroweaver.deployer.model_servers.health import COLD_START, PHASES, Health
from neuroweaver.v1 import deployer_pb2 as pb

_LOG: Final = logging.getLogger(__name__)
T = TypeVar("T")

_GLANCE_S: Final = 0.1
"""Between two looks at whether the process still runs."""
_ENDING_S: Final = 0.02
_SWAP_S: Final = 60.0
_CORRUPT: Final = 3
_OOM_KILLED: Final = processes.SIGNALLED + signal.SIGKILL
_KILLED_S: Final = 10.0
"""Within which the system removes a killed process, even one that gives back much memory."""


@dataclass(frozen=True, kw_only=True)
class ReplicaContext:
    """What all replicas on this machine share.

    wedge_grace_s: how long a replica that was ready may fail its health check. probe_s: between two checks of
    a ready one. settled: returns once the router knows of all changes so far.
    """

    client: httpx2.AsyncClient
    room: Room
    command: Sequence[str]
    environ: Mapping[str, str]
    settled: Callable[[], Awaitable[None]]
    wedge_grace_s: float
    probe_s: float


@dataclass(frozen=True)
class Adopted:
    """A replica that an earlier deployer started. process: None if it has ended since."""

    record: Record
    process: Process | None


@dataclass(frozen=True)
class _End:
    """How a process ended by itself, or why it was ended. code: None where it is not known."""

    why: str
    code: int | None = None


class Replica:
    """moved: called on every change. Only the event loop's thread touches it. in_flight: requests that the
    router had with it when it told last.

    lacks: `cpu`, `memory` or `gpu`, while it waits for it. oom_killed: how much memory it had used, if it was
    ended for that and has not been ready since. Both are empty otherwise.
    """

    def __init__(
        self,
        replica_id: str,
        folder: Path,
        start: Launch | Adopted,
        policy: Policy,
        context: ReplicaContext,
        supplies: Supplies,
        moved: Callable[[], None],
    ) -> None:
        self.replica_id = replica_id
        self.policy = policy
        self.in_flight = 0
        self._folder = folder
        self._context = context
        self._supplies = supplies
        self._moved = moved
        self._launch = start if isinstance(start, Launch) else None
        self._record = start.record if isinstance(start, Adopted) else _record(int(folder.name), start)
        self.process = start.process if isinstance(start, Adopted) else None
        self._health: Health | None = None
        # One that was ready when an earlier deployer looked last goes on serving until this one has looked.
        self._is_proven = self.process is not None and bool(self._record.phase_s)
        self._phase: pb.ReplicaPhase.ValueType = (
            pb.REPLICA_PHASE_READY if self._is_proven else pb.REPLICA_PHASE_SCHEDULING
        )
        self._message = ""
        self._failures = Failures()
        self._last_exit: int | None = None
        self.lacks = ""
        self._overuse = ""
        self.oom_killed = ""
        self._phase_s: dict[str, float] = dict(self._record.phase_s)
        self._own_s: dict[str, float] = {}
        self._start_time: datetime | None = None
        self._ready_time: datetime | None = None
        self._ready_since: float | None = None
        self._restart_at: datetime | None = None
        self._leave = asyncio.Event()
        self._launchable = asyncio.Event()
        if self._launch:
            self._launchable.set()
        self._drain_s = math.inf
        self._task = asyncio.create_task(self._live())

    # What it is.

    @property
    def number(self) -> int:
        return self._record.number

    @property
    def revision(self) -> int:
        return self._record.revision

    @property
    def target(self) -> str:
        return self._record.target

    @property
    def frame(self) -> str:
        return self._record.frame

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self._record.port}"

    @property
    def description(self) -> Mapping[str, Any] | None:
        """As `Launch.description`; None for an adopted one that nobody has wished for yet."""
        return self._launch.description(self.replica_id) if self._launch else None

    @property
    def need(self) -> Need:
        return Need(self._record.cores, self._record.memory_bytes, self._record.gpus)

    @property
    def was_started(self) -> bool:
        """Has a process, or had one."""
        return self.process is not None or self._last_exit is not None or self._record.restarts > 0

    @property
    def is_ready(self) -> bool:
        return self._phase == pb.REPLICA_PHASE_READY and not self.is_leaving

    @property
    def is_leaving(self) -> bool:
        return self._leave.is_set()

    @property
    def is_gone(self) -> bool:
        return self._task.done()

    def shown(self) -> backend.Replica:
        health, took = self._health, self._phase_s
        return backend.Replica(
            replica_id=self.replica_id,
            revision=self.revision,
            phase=self._phase,
            message=self._message,
            restarts=self._record.restarts,
            last_exit=self._last_exit,
            loaded_versions=health.loaded_versions if health else (),
            phases=tuple(
                (PHASES[name], timedelta(seconds=took[name])) for name in COLD_START if name in took
            ),
            start_time=self._start_time,
            ready_time=self._ready_time,
            last_token_time=health.last_token_time if health else None,
            restart_at=self._restart_at,
        )

    # What is done to it.

    def launch_as(self, launch: Launch) -> None:
        """Says how it is started should it fail; its target must be its own."""
        self._launch = launch
        self._launchable.set()

    def leave(self, drain_s: float) -> None:
        """Takes no further requests, ends those under way within `drain_s`, and goes."""
        if not self.is_leaving:
            _LOG.info("a replica leaves", extra={"replica": self.replica_id})
        # A shorter time given later holds, such as that of a shutdown.
        self._drain_s = min(self._drain_s, drain_s)
        self._leave.set()
        if self.process is not None:
            self._show(pb.REPLICA_PHASE_DRAINING, "finishes its requests")
        self._moved()

    async def gone(self) -> None:
        await asyncio.wait({self._task})

    async def swap(self, launch: Launch) -> bool:
        """Loads another adapter in place of its own; whether that worked."""
        places = await self._supplies.places(launch.bundle)
        old = self._record.version
        body = {
            "version": launch.bundle.version,
            "files_folder": str(places.files_folder),
            "files": listed(launch.bundle.files),
            "make_current": True,
        }
        try:
            answer = await self._context.client.post(
                f"{self.base_url}/admin/adapters", json=body, timeout=_SWAP_S
            )
        except httpx2.HTTPError as error:
            _LOG.warning("no swap", extra={"replica": self.replica_id, "cause": type(error).__name__})
            return False
        if answer.status_code // 100 != 2:
            _LOG.warning("no swap", extra={"replica": self.replica_id, "status": answer.status_code})
            return False
        self._launch = launch
        self._save(_record(self.number, launch, self._record))
        self._configure(launch, places)
        self._moved()
        if old != launch.bundle.version:
            with contextlib.suppress(httpx2.HTTPError):
                await self._context.client.delete(f"{self.base_url}/admin/adapters/{old}", timeout=_SWAP_S)
        return True

    # Its life.

    @property
    def _config(self) -> Path:
        return self._folder / "config.json"

    async def _live(self) -> None:
        try:
            if self.process is not None:
                self._context.room.hold(self.replica_id, self.need, self._record.devices)
            while not self.is_leaving or self.process is not None:
                end = await self._one_run()
                self.process = None
                if end is not None:
                    await self._fail(end)
        finally:
            self._context.room.give_back(self.replica_id)
            self._show(pb.REPLICA_PHASE_GONE, "")

    async def _one_run(self) -> _End | None:
        """From its start, or from where it is, to its end; None once it has left."""
        try:
            if self.process is None:
                self.process = await self._start()
            if self.process is None:
                return None
            process = self.process
            self._context.room.runs_as(self.replica_id, process.identity.pid)
            self._start_time = datetime.fromtimestamp(process.identity.started, UTC)
            weighing = asyncio.create_task(self._limit_memory(process))
            try:
                end = await self._attend(process)
            finally:
                weighing.cancel()
        except OSError as error:
            end = _End(f"cannot be started: {error.strerror}")
        except Exception:  # noqa: BLE001  # a replica without care would never be ended
            _LOG.exception("a replica's care failed", extra={"replica": self.replica_id})
            end = _End("the deployer failed while watching it; its log says why")
        if self.process is not None:
            self.process.kill()
        return None if self.is_leaving else end

    async def _start(self) -> Process | None:
        """None if it was told to leave before."""
        began = time.monotonic()
        if not await self._or_leave(self._launchable.wait()):
            return None
        launch = self._launch
        assert launch is not None
        self._phase_s, self._own_s = {}, {}
        if not await self._take_room(launch.need):
            return None
        fetching = time.monotonic()
        self._show(pb.REPLICA_PHASE_PULLING, f"fetches version {launch.bundle.version}")
        coming = self._supplies.places(launch.bundle, is_doubtful=self._last_exit == _CORRUPT)
        places = await self._or_leave(coming)
        if places is None:
            return None
        devices = self._context.room.gpus_of(self.replica_id)
        process = await asyncio.to_thread(self._spawn, launch, places, devices)
        self._own_s = {"scheduling": fetching - began, "pulling": time.monotonic() - fetching}
        return process

    async def _take_room(self, need: Need) -> bool:
        try:
            while lack := self._context.room.take(self.replica_id, need):
                self.lacks = lack.resource
                self._show(pb.REPLICA_PHASE_SCHEDULING, lack.message)
                if await self._pause(_GLANCE_S):
                    return False
        finally:
            self.lacks = ""
        return True

    def _spawn(self, launch: Launch, places: Places, devices: Sequence[str]) -> Process:
        """The record comes before the process, so that none runs that nobody can find."""
        known = _record(self.number, launch, self._record)
        self._save(replace(known, port=_free_port(), devices=devices, phase_s={}))
        self._configure(launch, places)
        log = log_files.new_file(self._folder, launch.revision)
        process = processes.start(self._context.command, self._config, self._environ(launch, devices), log)
        _LOG.info("a replica is started", extra={"replica": self.replica_id, "pid": process.identity.pid})
        return process

    def _configure(self, launch: Launch, places: Places) -> None:
        config = launch.config(port=self._record.port, places=places, drain_s=self.policy.drain_timeout_s)
        record.write_json(self._config, config.plain())

    def _environ(self, launch: Launch, devices: Sequence[str]) -> dict[str, str]:
        # Also without a GPU of its own: it would take one that is another's.
        environ = dict(self._context.environ) | {gpus.VISIBLE: ",".join(devices)}
        if launch.cpu_limit:
            environ["OMP_NUM_THREADS"] = str(max(1, math.ceil(quantities.amount(launch.cpu_limit))))
        return environ

    async def _attend(self, process: Process) -> _End | None:
        """Until it ends, must be ended, or has left (None)."""
        self._health, self._ready_time, self._ready_since = None, None, None
        begun = time.monotonic() - max(0.0, time.time() - process.identity.started)
        failing_since: float | None = None
        look_at = 0.0
        if not self._is_proven:
            self._show(pb.REPLICA_PHASE_PULLING, "starts")
        self._is_proven = False
        while True:
            if process.has_ended:
                return await self._ended(process)
            if self.is_leaving:
                await self._drain(process)
                return None
            now = time.monotonic()
            if now >= look_at:
                health = await probe.health(self._context.client, self.base_url)
                if health is None and self.is_ready:
                    # Once may be the fault of a busy machine, and other replicas would be as busy.
                    health = await probe.health(self._context.client, self.base_url)
                now = time.monotonic()
                self._learn(health, begun)
                is_failing = not health.is_live if health else self._ready_since is not None
                failing_since = (failing_since or now) if is_failing else None
                log_files.bound(self._folder)
                look_at = now + (self._context.probe_s if self.is_ready else min(0.2, self._context.probe_s))
            if why := self._must_end(now, begun, failing_since):
                process.kill()
                await _ended_within(process, lambda: _KILLED_S)
                return _End(why, process.exit_code)
            await self._pause(_GLANCE_S)

    def _learn(self, health: Health | None, begun: float) -> None:
        if health is None:
            if self._ready_since is not None:
                self._show(pb.REPLICA_PHASE_WARMING, "does not answer its health check")
            return
        if self._ready_since is None and not self._record.phase_s:
            self._time_phases(health, time.monotonic() - begun)
        self._health = health
        if health.is_ready and self._ready_since is None:
            self.oom_killed = ""
            self._ready_since = time.monotonic()
            self._ready_time = datetime.now(UTC)
            self._save(replace(self._record, phase_s=dict(self._phase_s)))
        if health.is_ready:
            self._show(pb.REPLICA_PHASE_READY, "")
        elif health.is_live:
            self._show(PHASES[health.phase], health.reason)
        else:
            self._show(pb.REPLICA_PHASE_FAILED, health.reason or "its engine makes no tokens")

    def _time_phases(self, health: Health, elapsed_s: float) -> None:
        if self._health is None:
            # Interpreter and libraries, which are to a process what the image is to a pod.
            start_s = max(0.0, elapsed_s - sum(health.phase_s.values()))
            self._own_s["pulling"] = self._own_s.get("pulling", 0.0) + start_s
        served_s = {name: health.phase_s[name] for name in COLD_START if name in health.phase_s}
        self._phase_s = served_s | {
            name: seconds + served_s.get(name, 0.0) for name, seconds in self._own_s.items()
        }

    def _must_end(self, now: float, begun: float, failing_since: float | None) -> str:
        """Why; empty if it may go on."""
        grace_s, timeout_s = self._context.wedge_grace_s, self.policy.startup_timeout_s
        if failing_since is not None and now - failing_since >= grace_s:
            reason = self._health.reason if self._health else ""
            return f"its engine made no tokens for {grace_s:g} s" + (f": {reason}" if reason else "")
        if self._ready_since is None and now - begun >= timeout_s:
            return f"was not ready within startup_timeout, {timeout_s:g} s"
        return ""

    async def _limit_memory(self, process: Process) -> None:
        """Ends it once it holds more than its limit, also while it starts or drains."""
        if why := await overuse(process, self._memory_limit_bytes):
            _LOG.warning("a replica is ended for its memory", extra={"replica": self.replica_id})
            self._overuse = why
            process.kill()

    def _memory_limit_bytes(self) -> int:
        return (self._launch or self._record).memory_limit_bytes

    async def _ended(self, process: Process) -> _End:
        if self._overuse:
            return _End(self._overuse, _OOM_KILLED)
        code = process.exit_code
        lines = await asyncio.to_thread(log_files.last_words, self._folder)
        return _End(explained(lines, code).message, code)

    async def _drain(self, process: Process) -> None:
        await self._context.settled()
        process.terminate()
        await _ended_within(process, lambda: self._drain_s)
        process.kill()
        await _ended_within(process, lambda: _KILLED_S)
        self._last_exit = process.exit_code

    async def _fail(self, end: _End) -> None:
        now = time.monotonic()
        self._last_exit = end.code
        self.oom_killed, self._overuse = self._overuse, ""
        self._failures = self._failures.failed(now, self.policy, self._ready_since)
        self._ready_since = None
        delay_s = self._failures.delay_s(self.policy)
        self._restart_at = datetime.now(UTC) + timedelta(seconds=delay_s)
        looping = self._failures.is_crash_loop
        phase = pb.REPLICA_PHASE_CRASH_LOOP if looping else pb.REPLICA_PHASE_FAILED
        _LOG.warning("a replica failed", extra={"replica": self.replica_id, "restart_in_s": delay_s})
        self._show(phase, end.why)
        if not await self._pause(delay_s):
            self._restart_at = None
            self._save(replace(self._record, restarts=self._record.restarts + 1))

    # How it waits, and what it shows.

    async def _pause(self, seconds: float) -> bool:
        """Whether it was told to leave meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._leave.wait()
        return self.is_leaving

    async def _or_leave(self, awaitable: Awaitable[T]) -> T | None:
        """The result; None if the replica was told to leave before."""
        working, leaving = asyncio.ensure_future(awaitable), asyncio.create_task(self._leave.wait())
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            leaving.cancel()

    def _show(self, phase: pb.ReplicaPhase.ValueType, message: str) -> None:
        is_late = self.is_leaving and phase not in {pb.REPLICA_PHASE_DRAINING, pb.REPLICA_PHASE_GONE}
        if (phase, message) != (self._phase, self._message) and not is_late:
            self._phase, self._message = phase, message
            self._moved()

    def _save(self, new: Record) -> None:
        self._record = new
        record.write(self._folder, new)


def _record(number: int, launch: Launch, before: Record | None = None) -> Record:
    return replace(
        before or Record(number, 0, "", "", ""),
        revision=launch.revision,
        version=launch.bundle.version,
        target=launch.target,
        frame=launch.frame,
        cores=launch.need.cores,
        memory_bytes=launch.need.memory_bytes,
        memory_limit_bytes=launch.memory_limit_bytes,
        gpus=launch.need.gpus,
    )


async def _ended_within(process: Process, timeout_s: Callable[[], float]) -> None:
    """timeout_s: asked again and again, since it may be shortened meanwhile."""
    began = time.monotonic()
    while not process.has_ended and time.monotonic() - began < timeout_s():  # noqa: ASYNC110  # there is no event
        await asyncio.sleep(_ENDING_S)


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])
