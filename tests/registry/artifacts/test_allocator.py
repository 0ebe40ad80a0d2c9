from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from neuroweaver.registry.artifacts import allocator

# Buffers as a stream of messages takes them, several at a time, and the pages that the kernel had to give.
FAULTS = """
import resource
from neuroweaver.registry.artifacts import allocator
if {kept}:
    allocator.keep_freed()
def message():
    return [b"x" * size for size in [2 << 20] * 4]
message()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    message()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, kept: bool) -> int:
    code = FAULTS.format(kept=kept)
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library: nothing is changed")
def test_memory_of_one_message_serves_the_next():
    assert faults(kept=True) < faults(kept=False) / 10


def test_it_may_be_said_more_than_once():
    allocator.keep_freed()
    allocator.keep_freed()
