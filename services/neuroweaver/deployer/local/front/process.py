"""The deployer's side of the router: starts its process, finds it again, and keeps it in the know."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

import httpx2

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.local.front.program import WOKEN_S
from neuroweaver.deployer.local.replicas import log_files, processes, record
from neuroweaver.deployer.local.replicas.restarts import Failures, Policy
from neuroweaver.deployer.local.routes import RECORDS, Config, Reports, Tables, Woken, read
from neuroweaver.mesh.handlers.loop import Outage, repeat
from neuroweaver.mesh.handlers.signals import Signal
from neuroweaver.mesh.machine.files import short_path
from neuroweaver.mesh.machine.processes import module

_LOG: Final = logging.getLogger(__name__)

FOLDER: Final = "_router"
"""In that of the deployments, none of which can be called so."""
RELEASE: Final = metadata.version("neuroweaver")
_COMMAND: Final = module("neuroweaver.deployer.local.front")
CONFIG: Final = "config.json"
_URL: Final = "http://router"
_START_S: Final = 60.0
_CALL_S: Final = 5.0
_SETTLED_S: Final = 2.0
"""What waits for a router that does not answer goes on after that."""
_SILENT_S: Final = 30.0
_LOOK_S: Final = 0.1
_HEARD_S: Final = 0.5
_POLICY: Final = Policy(backoff_s=0.1, max_backoff_s=10.0)
_TROUBLES: Final = (httpx2.HTTPError, OSError, ValueError, KeyError, TypeError)


class Running(Protocol):
    """A process that serves the router; see `replicas.processes.Process`."""

    @property
    def has_ended(self) -> bool: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


Start = Callable[[Path, Mapping[str, str], Path], Awaitable[Running]]
"""Of a configuration, an environment and a log. Raises OSError."""


async def as_process(config: Path, environ: Mapping[str, str], log: Path) -> Running:
    return await asyncio.to_thread(processes.start, _COMMAND, config, environ, log)


@dataclass(frozen=True)
class Tidings:
    """What the router is to know, and what becomes of what it tells."""

    tables: Callable[[], Tables]
    heard: Callable[[Reports], None]
    woken: Callable[[Collection[str]], None]


class RouterProcess:
    """Only the event loop's thread calls it. config: its port is that of a router that runs already, if it is
    0 and there is one.
    """

    def __init__(
        self, folder: Path, config: Config, environ: Mapping[str, str], start: Start, tidings: Tidings
    ) -> None:
        self.config = config
        self._folder = folder
        self._environ = environ
        self._start = start
        self._tidings = tidings
        self._changed = Signal()
        self._known = -1
        self._telling = asyncio.Lock()
        self._process: Running | None = None
        self._failures = Failures()
        self._began_at = time.monotonic()
        self._failing_since: float | None = None
        self._paths = ExitStack()
        self._client: httpx2.AsyncClient | None = None
        self._going_on: asyncio.Task[None] | None = None
        self._woken = 0

    async def begin(self, running: Running | None, free_port: Callable[[], int]) -> None:
        """Takes over the router that an earlier deployer left, or starts one; returns once it answers.

        free_port: checks that the port is free, and gives one where any will do. Raises BackendError.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        file = self._folder / CONFIG
        if running is not None and self._is_fitting(earlier := read(file)):
            assert earlier is not None
            self.config, self._process = earlier, running
            _LOG.info("the router is adopted", extra={"port": self.config.port})
        else:
            if running is not None:
                await self._ended(running)
            self.config = replace(self.config, port=free_port())
            record.write_json(file, RECORDS.plain(self.config))
            await self._launch()
        control = self._paths.enter_context(short_path(self._folder / self.config.control))
        transport = httpx2.AsyncHTTPTransport(uds=control)
        self._client = httpx2.AsyncClient(transport=transport, base_url=_URL, timeout=_CALL_S)
        await self._answering()
        self._going_on = asyncio.create_task(self._go_on())

    async def close(self) -> None:
        """Ends it, once its calls are done or out of time."""
        if self._going_on is not None:
            self._going_on.cancel()
            await asyncio.wait({self._going_on})
        process, self._process = self._process, None
        if process is not None:
            await self._ended(process)
        if self._client is not None:
            await self._client.aclose()
        self._paths.close()

    def touch(self) -> None:
        """Something changed that the router may have to know."""
        self._changed.notify()

    def sweep(self) -> None:
        """To be called once in a while: bounds its log, and tells it everything again."""
        log_files.bound(self._folder)
        self.touch()

    async def settled(self) -> None:
        """Returns once the router knows of all changes so far, or cannot be told."""
        if self._process is None or self._process.has_ended:
            return
        with contextlib.suppress(TimeoutError, *_TROUBLES):
            async with asyncio.timeout(_SETTLED_S):
                await self._told()

    async def hear(self) -> None:
        """Has it tell what it saw by now, if it can."""
        if self._process is None:
            return
        with contextlib.suppress(*_TROUBLES):
            await self._heard()

    def _is_fitting(self, earlier: Config | None) -> bool:
        port = self.config.port or (earlier.port if earlier else 0)
        return earlier == replace(self.config, port=port)

    async def _launch(self) -> None:
        """Raises OSError."""
        self._known = -1
        self._woken = 0
        self._began_at, self._failing_since = time.monotonic(), None
        log = log_files.new_file(self._folder, 0)
        log.touch(mode=0o600)
        self._process = await self._start(self._folder / CONFIG, self._environ, log)

    async def _answering(self) -> None:
        """Raises BackendError if it does not come to that."""
        give_up = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(*_TROUBLES):
                await self._told()
                return
            assert self._process is not None
            if self._process.has_ended or time.monotonic() > give_up:
                words = await asyncio.to_thread(log_files.last_words, self._folder)
                why = words[-1] if words else "it did not answer in time"
                raise BackendError(Trouble.NOT_CONFIGURED, f"the router did not start: {why}")
            await asyncio.sleep(_LOOK_S / 2)

    async def _ended(self, process: Running) -> None:
        process.terminate()
        give_up = time.monotonic() + self.config.drain_s + _CALL_S
        while not process.has_ended:
            if time.monotonic() > give_up:
                process.kill()
                give_up += _CALL_S
            await asyncio.sleep(_LOOK_S / 4)

    # What goes on until it is closed.

    async def _go_on(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for name, turn, period_s, wake in (
                ("router", self._look, _LOOK_S, None),
                ("routes", self._told, _HEARD_S, self._changed),
                ("router's reports", self._heard, _HEARD_S, None),
                ("router's calls", self._call, 0.0, None),
            ):
                outage = Outage(name, foreseen=_TROUBLES, max_backoff_s=2 * _LOOK_S)
                tasks.create_task(repeat(name, turn, period_s, wake=wake, outage=outage))

    async def _look(self) -> float | None:
        """Starts it again when it has ended, or answers nothing for long."""
        now = time.monotonic()
        if self._process is not None and not self._process.has_ended:
            if self._failing_since is not None and now - self._failing_since > _SILENT_S:
                _LOG.error("the router does not answer, and is ended")
                self._process.kill()
            return None
        if self._process is not None:
            self._process = None
            self._failures = self._failures.failed(now, _POLICY, self._began_at)
            delay_s = self._failures.delay_s(_POLICY)
            words = await asyncio.to_thread(log_files.last_words, self._folder)
            fields = {"restart_in_s": delay_s, "cause": words[-1] if words else ""}
            _LOG.error("the router has ended", extra=fields)
            return delay_s
        await self._launch()
        self.touch()
        return None

    async def _call(self) -> None:
        """Waits for requests that wake something."""
        path = f"/woken?after={self._woken}"
        woken = RECORDS.load(Woken, await self._asked("GET", path, timeout_s=WOKEN_S + _CALL_S))
        self._woken = woken.count
        self._tidings.woken(woken.names)

    async def _heard(self) -> None:
        self._tidings.heard(RECORDS.load(Reports, await self._asked("GET", "/reports")))

    async def _told(self) -> None:
        async with self._telling:
            if self._known == (seen := self._changed.count):
                return
            await self._asked("PUT", "/tables", content=RECORDS.dump(self._tidings.tables()))
            self._known = seen

    async def _asked(self, method: str, path: str, *, timeout_s: float = _CALL_S, **options: Any) -> str:
        assert self._client is not None
        try:
            answer = await self._client.request(method, path, timeout=timeout_s, **options)
            answer.raise_for_status()
        except httpx2.HTTPError:
            # Not the time of the last answer, which is long ago where this process itself was stopped.
            self._failing_since = self._failing_since or time.monotonic()
            raise
        self._failing_since = None
        return answer.text
