"""Workers as processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from neuroweaver.base_models import hub_models
from neuroweaver.mesh.machine import processes
from neuroweaver.mesh.server.redaction import redacted_text, secrets_of
from neuroweaver.mesh.wire.environment import without_secrets
from neuroweaver.trainer.domain.job import Job
from neuroweaver.trainer.domain.offers import EMBEDDED_JUDGE
from neuroweaver.trainer.executors.executor import LOG_NAME, Exit, Worker

_COMMAND: Final = processes.module("neuroweaver.trainer.worker")

# Threads that spin while they wait for each other make work many times slower on a machine that is shared:
# bench/RESULTS.md has the figures.
_ENVIRONMENT: Final = {
    "OMP_WAIT_POLICY": "PASSIVE",
    # No worker compiles, and bitsandbytes, which asks for it when it is imported, loads a compiler for that.
    "TORCHDYNAMO_DISABLE": "1",
}

# How the last line of a traceback begins, and what faulthandler writes before a stack.
_ERROR: Final = re.compile(r"(?:[\w.]+\.)?\w+(?:Error|Exception|Exit)\b(?::|$)|Fatal Python error: ")
_TAIL_BYTES: Final = 1 << 16
_MAX_CAUSE: Final = 500


class LocalExecutor:
    """Starts each worker as a process in a session of its own, so that it outlives a killed trainer."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = dict(environ)

    async def start(self, job: Job, secret: str, folder: Path) -> Worker:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        environ = (
            _ENVIRONMENT
            | without_secrets(self._environ, *_keys(job))
            | {
                "NEUROWEAVER_JOB_ID": job.job_id,
                "NEUROWEAVER_LEASE_TOKEN": str(job.lease_token),
                "NEUROWEAVER_JOB_FOLDER": str(folder),
                # A crash in native code leaves its stack in the log instead of nothing.
                "PYTHONFAULTHANDLER": "1",
            }
        )
        if job.trace_parent:
            environ["TRACEPARENT"] = job.trace_parent
        log, kills_before = folder / LOG_NAME, _out_of_memory_kills()
        written_before = log.stat().st_size if log.exists() else 0
        process = await asyncio.to_thread(processes.start, _COMMAND, environ, log, secret=secret)

        def cause() -> str:
            return redacted_text(last_error(log, written_before), secrets_of(self._environ))[:_MAX_CAUSE]

        return _LocalWorker(process, kills_before, cause)


def _keys(job: Job) -> tuple[str, ...]:
    """The secrets that the job's worker uses; its judge's only where that is behind an endpoint."""
    of_judge = () if job.config.feedback_model == EMBEDDED_JUDGE else ("OPENAI_API_KEY",)
    return (*hub_models.KEYS, "WANDB_API_KEY", *of_judge)


class _LocalWorker:
    def __init__(self, process: subprocess.Popen[bytes], kills_before: int, cause: Callable[[], str]) -> None:
        self._process = process
        self._kills_before = kills_before
        self._cause = cause

    async def wait(self) -> Exit:
        status = await asyncio.to_thread(self._process.wait)
        was_killed = status == -signal.SIGKILL
        ran_out_of_memory = was_killed and _out_of_memory_kills() > self._kills_before
        return Exit(status, ran_out_of_memory, await asyncio.to_thread(self._cause))

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        # The whole session: a data loader or a compiler that the worker started must not stay behind.
        processes.kill_session(self._process.pid)


def last_error(log_file: Path, start: int) -> str:
    """The last line from byte `start` on that ends a traceback, or tells of a crash in native code."""
    try:
        with log_file.open("rb") as log:
            log.seek(max(start, log_file.stat().st_size - _TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if _ERROR.match(line)), "")


def _out_of_memory_kills() -> int:
    """How often the kernel has killed for memory on this machine; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
