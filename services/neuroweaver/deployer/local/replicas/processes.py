"""Processes of this machine: started so that they outlive a killed deployer, and found again.

A process is known by its pid, its start time and the configuration file on its command line, so that a pid
that the system gave to another one is never touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from neuroweaver.mesh.machine import memory, processes

CONFIG_OPTION: Final = "--config"
SIGNALLED: Final = 128
"""The exit code of a process that a signal ended is this and the signal's number."""
_SAME_S: Final = 1.0
"""Start times are reckoned from the time of boot, which a corrected clock moves a little."""


@dataclass(frozen=True)
class Identity:
    """started: unix seconds."""

    pid: int
    started: float


class Process:
    """A process that was started here, or found. All but `held_bytes` returns at once."""

    def __init__(self, identity: Identity, config: Path, child: subprocess.Popen[bytes] | None) -> None:
        self.identity = identity
        self._config = config
        self._child = child

    @property
    def has_ended(self) -> bool:
        if self._child is not None:
            return self._child.poll() is not None
        return _same(self.identity, self._config) is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and for one that was only found. After a signal 128 and its number, as
        Kubernetes and shells write it.
        """
        code = self._child.poll() if self._child is not None else None
        return SIGNALLED - code if code is not None and code < 0 else code

    def terminate(self) -> None:
        if not self.has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.identity.pid, signal.SIGTERM)

    def kill(self) -> None:
        """With all processes of its session: what it started must not stay behind."""
        if not self.has_ended:
            processes.kill_session(self.identity.pid)

    def cpu_seconds(self) -> float | None:
        """Used since its start; None if it has ended."""
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(self.identity.pid).cpu_times()
            return float(times.user + times.system)
        return None

    def memory_bytes(self) -> int | None:
        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(self.identity.pid).memory_info().rss)
        return None

    def held_bytes(self) -> int:
        """As `memory.held_bytes`, with all processes of its session. Blocks for milliseconds."""
        return memory.held_bytes(*(pid for pid in psutil.pids() if _session(pid) == self.identity.pid))


def start(command: Sequence[str], config: Path, environ: Mapping[str, str], log: Path) -> Process:
    """Blocks for milliseconds. Raises OSError."""
    child = processes.start([*command, CONFIG_OPTION, str(config)], environ, log)
    try:
        started = psutil.Process(child.pid).create_time()
    except psutil.Error:
        started = 0.0
    return Process(Identity(child.pid, started), config, child)


def found(folder: Path) -> dict[Path, Process]:
    """All running processes whose configuration file lies below `folder`, by that file."""
    running = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            config = _config_of(process)
            # What it forked has its command line too, but leads no session.
            is_leader = config is not None and os.getsid(process.pid) == process.pid
            if config is not None and is_leader and config.is_relative_to(folder) and _runs(process):
                running[config] = Process(Identity(process.pid, process.create_time()), config, None)
    return running


def _same(identity: Identity, config: Path) -> psutil.Process | None:
    """The process, if it still runs and is the one that is meant."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(identity.pid)
        is_same = abs(process.create_time() - identity.started) < _SAME_S and _config_of(process) == config
        return process if is_same and _runs(process) else None
    return None


def _session(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return None


def _runs(process: psutil.Process) -> bool:
    return bool(process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))


def _config_of(process: psutil.Process) -> Path | None:
    words = process.cmdline()
    if CONFIG_OPTION in words[:-1]:
        return Path(words[words.index(CONFIG_OPTION) + 1])
    return None
