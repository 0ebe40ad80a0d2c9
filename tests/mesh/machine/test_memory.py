from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from neuroweaver.mesh.machine.memory import held_bytes

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")

MIB = 1 << 20
ALL = 100 * MIB


@contextmanager
def running(program: str, *arguments: str) -> Iterator[list[int]]:
    """The pids that the program tells, each on a line, once it has told them all; then it waits."""
    command = [sys.executable, "-S", "-c", program, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield [int(pid) for pid in process.stdout.readline().split()]
        finally:
            assert process.stdin
            process.stdin.close()


ALLOCATES = """
import os, sys
block = b"x" * int(sys.argv[1])
print(os.getpid(), flush=True)
sys.stdin.read()
"""
SHARES = """
import mmap, os, sys
block = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_SHARED)
block.write(b"x" * int(sys.argv[1]))
print(os.getpid(), flush=True)
sys.stdin.read()
"""
MAPS_A_FILE = """
import mmap, os, sys
# As often as it takes: a file of the tests' own could lie in memory.
kept = []
with open(sys.executable, "rb") as file:
    while sum(map(len, kept)) < int(sys.argv[1]):
        kept.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        sum(kept[-1][::mmap.PAGESIZE])
print(os.getpid(), flush=True)
sys.stdin.read()
"""
FORKS = """
import os, sys
block = b"x" * int(sys.argv[1])
pids = [os.getpid()]
for _ in range(3):
    pid = os.fork()
    if not pid:
        sys.stdin.read()
        os._exit(0)
    pids.append(pid)
print(*pids, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("program", [ALLOCATES, SHARES], ids=["its own", "shared"])
def test_memory_that_only_its_end_gives_back_is_held(program: str):
    with running(program, str(ALL)) as pids:
        assert ALL <= held_bytes(*pids) < ALL + 40 * MIB


def test_pages_of_a_mapped_file_are_not_held():
    with running(MAPS_A_FILE, str(ALL)) as (pid,):
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
        assert resident > ALL
        assert held_bytes(pid) < 40 * MIB


def test_what_forked_processes_share_counts_once():
    with running(FORKS, str(ALL)) as pids:
        assert len(pids) == 4
        assert ALL <= held_bytes(*pids) < 2 * ALL


def test_what_has_ended_holds_nothing():
    with running(ALLOCATES, "1") as (pid,):
        assert held_bytes(pid) > 0
    assert held_bytes(pid) == 0
    assert held_bytes() == 0
    assert held_bytes(os.getpid(), pid) > 0
