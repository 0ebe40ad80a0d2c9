"""Programs as processes of this machine, started in the one way that is safe in a server of gRPC's.

A fork runs gRPC's handlers in the child, which can crash it before it becomes another program; asyncio under
uvloop, `multiprocessing` and `os.fork` all fork. `subprocess` uses vfork, which calls no handlers, as long as
it is given no `preexec_fn`, user or group.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


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


def ending(status: int) -> str:
    """How a process ended, for people. status: its exit status, or minus the number of the signal."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
