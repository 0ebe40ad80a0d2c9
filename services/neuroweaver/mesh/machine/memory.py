"""What a process holds of the machine's memory, as a container's limit counts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

_PROC: Final = Path("/proc")
_ALONE: Final = ("RssAnon", "RssShmem", "VmSwap")
_TOGETHER: Final = ("Pss_Anon", "Pss_Shmem", "SwapPss")


def held_bytes(*pids: int) -> int:
    """What these processes hold together that nothing but their end gives back: anonymous and shared memory,
    also what was swapped out. Those that have ended hold nothing.

    Pages of mapped files are left out, such as weights that are read where they lie on disk: servers of one
    model share them, and the kernel drops clean ones when memory gets short, so that a cgroup takes them back
    before it kills anything. What the processes share with each other counts once. Without Linux's /proc it
    is their resident memory, mapped files included. Blocks: milliseconds for one, longer for several large
    ones.
    """
    if not _PROC.joinpath("self/status").is_file():
        return sum(_resident_bytes(pid) for pid in pids)
    # The shares of each page cost a walk through all of them, and only several processes need them.
    file, names = ("status", _ALONE) if len(pids) == 1 else ("smaps_rollup", _TOGETHER)
    return sum(_sum_bytes(_PROC / str(pid) / file, names) for pid in pids)


def _sum_bytes(file: Path, names: Sequence[str]) -> int:
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    fields = (line.partition(":") for line in lines)
    return sum(int(value.split()[0]) << 10 for name, _, value in fields if name in names)


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
