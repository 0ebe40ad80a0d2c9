"""A model server's life: it binds its port, loads, serves, drains, ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn

from neuroweaver.artifacts.serving_config import BadConfig, ServingConfig
from neuroweaver.base_models.folders import Digests
from neuroweaver.mesh.server.http_bodies import Bodies
from neuroweaver.mesh.server.http_connections import bound_buffers, http_server
from neuroweaver.mesh.server.http_limits import HttpLimits
from neuroweaver.mesh.wire import environment
from neuroweaver.serving import artifacts
from neuroweaver.serving.artifacts import DamagedArtifacts
from neuroweaver.serving.engine.engine import Engine
from neuroweaver.serving.http.admin import Admin
from neuroweaver.serving.http.app import application
from neuroweaver.serving.http.metrics import Metrics
from neuroweaver.serving.status import Phase, Pulse, Status
from neuroweaver.serving.tokenizing import Tokenizers
from neuroweaver.serving.versions import Versions
from neuroweaver.serving.work import Work

if TYPE_CHECKING:
    from neuroweaver.serving.engine.loading import Loaded

logger = logging.getLogger(__name__)

_DRAIN_POLL_S: Final = 0.05
_BACKLOG: Final = 2048
# For connections whose answer is complete but not sent yet.
_LAST_BYTES_S: Final = 5


class Exit(IntEnum):
    DRAINED = 0
    CUT_SHORT = 1
    """Requests were still running when the time to drain was over."""
    BAD_CONFIG = 2
    DAMAGED_ARTIFACTS = 3
    CANNOT_LOAD = 4


class ModelServer:
    """Runs in an event loop; the engine has a thread of its own."""

    def __init__(self, config: ServingConfig) -> None:
        """Raises SettingsError."""
        loop = asyncio.get_running_loop()
        limits = environment.read(HttpLimits).behind_router()
        tokenizing = Pulse(
            config.stall_s, config.probe_interval_s, missed="the tokenizers have made no prompt"
        )
        self.status = Status(Pulse(config.stall_s, config.probe_interval_s), tokenizing)
        self._tokenizers = Tokenizers(tokenizing)
        self._views = ExitStack()
        self._config = config
        self._loop = loop
        versions = Versions(config.name, config.version)
        self._work = Work(self.status, versions, loop, Bodies(limits), self._tokenizers)
        self._admin = Admin(self._work, config)
        metrics = Metrics()
        metrics.watch(
            lambda: self._work.running,
            lambda: self._work.waiting,
            lambda: self.status.pulse.last_token_time,
        )
        self._http = _Http(
            http_server(
                application(self._work, self._admin, metrics, config),
                limits,
                timeout_graceful_shutdown=_LAST_BYTES_S,
            )
        )
        self._exit = Exit.DRAINED
        self._draining: asyncio.Task[None] | None = None

    async def run(self) -> Exit:
        """Serves until SIGTERM or SIGINT has drained it, or it failed. Raises BadConfig: no such address."""
        with bound(self._config.host, self._config.port) as listener, self._views:
            host, port = listener.getsockname()[:2]
            logger.info("listening", extra={"host": host, "port": port, "model": self._config.name})
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self.drain)
            # A daemon: a wedged engine must not keep the process.
            threading.Thread(target=self._run_engine, name="engine", daemon=True).start()
            try:
                await self._http.serve(sockets=[listener])
            finally:
                await self._tokenizers.close()
        return self._exit

    def drain(self) -> None:
        """Takes no more requests; ends once those at work have ended. Idempotent."""
        if self._draining is None:
            self.status.enter(Phase.DRAINING, "asked to end")
            logger.info("draining", extra={"requests": self._work.requests})
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        deadline = self._loop.time() + self._config.drain_s
        while self._work.requests and self._loop.time() < deadline:  # noqa: ASYNC110 (ends by time as well)
            await asyncio.sleep(_DRAIN_POLL_S)
        if self._work.requests:
            logger.warning("cut short", extra={"requests": self._work.requests})
            self._exit = Exit.CUT_SHORT
            self._http.force_exit = True
        self._http.should_exit = True

    def _run_engine(self) -> None:
        try:
            engine = self._loaded()
        except DamagedArtifacts as error:
            self._fail(Exit.DAMAGED_ARTIFACTS, str(error))
        except Exception as error:
            logger.exception("the model cannot be served")
            self._fail(Exit.CANNOT_LOAD, str(error))
        else:
            engine.run()

    def _loaded(self) -> Engine:
        """A warm engine. Raises DamagedArtifacts, CannotTokenize, CannotServe."""
        config = self._config
        if config.base_folder:
            expected = Digests(config.base_digest, config.tokenizer_digest, config.chat_template_digest)
            artifacts.verify_base(Path(config.base_folder), expected)
        # To the end: a tokenizer that is replaced reads them again.
        files = self._views.enter_context(artifacts.verified(Path(config.files_folder), config.files))
        self.status.enter(Phase.LOADING)
        folder = (
            Path(config.base_folder) if config.base_folder else files / artifacts.model_folder(config.files)
        )
        tokenizers = asyncio.run_coroutine_threadsafe(self._tokenizers.start(folder), self._loop)
        # torch and transformers take seconds to import, in which health is answered already.
        from neuroweaver.serving.engine.loading import load  # noqa: PLC0415

        # First: here nothing would end a template that loops.
        tokenizers.result()
        loaded = load(config, files)
        self._admin.adapters = loaded.network.adapters
        self._admin.vocab_size = loaded.vocab_size
        engine = Engine(
            loaded.network,
            loaded.tokenizer,
            self._work.deliver,
            self.status.pulse,
            max_batch_size=config.max_batch_size,
            max_queue_size=config.max_queue_size,
        )
        self.status.enter(Phase.WARMING)
        engine.warm_up()
        # The libraries' objects live as long as the process: no later collection looks at them, which would
        # hold up tokens and health answers.
        gc.collect()
        gc.freeze()
        self._loop.call_soon_threadsafe(self._attach, engine, loaded)
        return engine

    def _attach(self, engine: Engine, loaded: Loaded) -> None:
        self._work.versions.ends[self._config.version] = loaded.version_ends
        self._work.attach(engine, loaded.network.max_context, loaded.ends)
        logger.info("ready", extra={"phases": self.status.report()["phases"]})

    def _fail(self, code: Exit, reason: str) -> None:
        if self._draining is not None:  # asked to end anyway
            return
        logger.error("failed: %s", reason, extra={"exit_code": int(code)})
        self.status.enter(Phase.FAILED, reason)
        self._exit = code
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._http.should_exit = True


class _Http(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals drain the model server before this one ends."""
        yield


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Raises BadConfig."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound_buffers(listener)
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            raise BadConfig(
                f"host and port: {host}:{port} cannot be listened on: {error.strerror}"
            ) from error
        yield listener
