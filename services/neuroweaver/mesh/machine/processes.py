"""Programs as processes of this machine, started in the one way that is safe in a server of gRPC's.

A fork runs gRPC's handlers in the child, which can crash it before it becomes another program; asyncio under
uvloop, `multiprocessing` and `os.fork` all fork. `subprocess` uses vfork, which calls no handlers, as long as
it is given no `preexec_fn`, user or group.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_ENDED: Final = frozenset({"Z", "X"})


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module with this interpreter; nothing in the working directory is imported."""
    return (sys.executable, "-P", "-m", name, *arguments)


def start(
    command: Sequence[str], environ: Mapping[str, str], log: Path, *, secret: str = ""
) -> subprocess.Popen[bytes]:
    """A process that outlives this one, in a session of its own. Blocks for milliseconds. Raises OSError.

    secret: the first line of its standard input, which is otherwise empty.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  # the caller's own command
            command,
            stdin=subprocess.PIPE if secret else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environ),
            start_new_session=True,
        )
    if process.stdin:
        # A process that has ended already reads nothing; its exit status says more than this error.
        with contextlib.suppress(BrokenPipeError), process.stdin as line:
            line.write(f"{secret}\n".encode())
    return process


async def run(command: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    """What a program answered until it ended; killed when the caller is cancelled. Raises OSError."""
    process = await asyncio.to_thread(
        subprocess.Popen,
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environ),
    )
    try:
        output, errors = await asyncio.to_thread(process.communicate)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def kill_session(process_id: int) -> None:
    """Ends a process that `start` started, with all that it started itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process_id, signal.SIGKILL)


def own_name() -> str:
    """A name of this process among all of the world, by which `is_gone` knows it; 40 characters at most.

    Empty where the system tells too little, which Linux alone does not.
    """
    try:
        return f"{_machine()}.{os.getpid()}.{_state(os.getpid())[1]}"
    except OSError:
        return ""


def is_gone(name: str) -> bool:
    """Whether the process of this `own_name` is known to have ended; False where that cannot be told."""
    try:
        machine, pid, started = name.split(".")
        if machine != _machine():
            return False
        os.kill(int(pid), 0)
        state, started_now = _state(int(pid))
    except ProcessLookupError:
        return True
    except (OSError, ValueError):  # it is another user's, or the name no name
        return False
    # One that nobody has waited for yet has ended, and its id may be another's by now.
    return state in _ENDED or started_now != started


def _machine() -> str:
    """Where process ids mean the same: this system since its start, and in it this namespace.

    Raises OSError.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespace = Path("/proc/self/ns/pid").readlink()
    if Path("/proc/self").readlink().name != str(os.getpid()):
        raise OSError("/proc shows the processes of another namespace")
    return hashlib.sha256(f"{boot} {namespace} {socket.gethostname()}".encode()).hexdigest()[:16]


def _state(pid: int) -> tuple[str, str]:
    """Of a process: a letter, and when it started, in the system's ticks (proc(5)). Raises OSError."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode("ascii").split()
    return fields[0], fields[19]


def ending(status: int) -> str:
    """How a process ended, for people. status: its exit status, or minus the number of the signal."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
