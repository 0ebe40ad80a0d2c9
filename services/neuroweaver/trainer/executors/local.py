"""Workers as processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from neuroweaver.mesh.server.redaction import secrets_of, without_secrets
from neuroweaver.trainer.domain.job import Job
from neuroweaver.trainer.executors.executor import LOG_NAME, Exit, Worker

# Threads that spin while they wait for each other make work many times slower on a machine that is shared:
# bench/RESULTS.md has the figures.
_ENVIRONMENT: Final = {"OMP_WAIT_POLICY": "PASSIVE"}

# How the last line of a traceback begins, and what faulthandler writes before a stack.
_ERROR: Final = re.compile(r"(?:[\w.]+\.)?\w+(?:Error|Exception|Exit)\b(?::|$)|Fatal Python error: ")
_TAIL_BYTES: Final = 1 << 16
_MAX_CAUSE: Final = 500


class LocalExecutor:
    """Starts each worker as a process in a session of its own, so that it outlives a killed trainer."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = dict(environ)

    async def start(self, job: Job, folder: Path) -> Worker:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        environ = (
            _ENVIRONMENT
            | self._environ
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
        log_file, kills_before = folder / LOG_NAME, _out_of_memory_kills()
        written_before = log_file.stat().st_size if log_file.exists() else 0
        process = await asyncio.to_thread(_spawn, environ, log_file)

        def cause() -> str:
            return without_secrets(last_error(log_file, written_before), secrets_of(environ))[:_MAX_CAUSE]

        return _LocalWorker(process, kills_before, cause)


def _spawn(environ: Mapping[str, str], log_file: Path) -> subprocess.Popen[bytes]:
    # Not asyncio's: uvloop forks, and gRPC's handlers for a fork crash the child before it becomes a worker.
    with log_file.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "neuroweaver.trainer.worker"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ,
            start_new_session=True,
        )


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
        with contextlib.suppress(ProcessLookupError):
            # The whole session: a data loader or a compiler that the worker started must not stay behind.
            os.killpg(self._process.pid, signal.SIGKILL)


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
