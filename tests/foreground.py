"""Processes that hear signals as a shell's foreground programs do."""

from __future__ import annotations

import signal
import subprocess
from typing import Any


def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """A process with text pipes that hears SIGINT and SIGHUP, however this one was started.

    A process inherits what its parent ignores: SIGHUP under nohup, SIGINT behind a shell's `&` and in the workers of
    a parallel run. Only for the main thread.
    """
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
