"""What confines a process that runs a base model's chat template and tokenizer: code and data of others.

They may loop, or fill the memory, which then ends their process alone. Whoever starts it gives it
`environment`, and bounds its time; the process confines itself before it imports transformers.
Requests and answers are JSON behind their length in 4 bytes.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Mapping
from typing import IO, Any, BinaryIO, Final

# Threads of their own would take addresses for each core of the machine, and help none.
ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
MEMORY_BYTES: Final = 2 << 30
"""Of addresses. A tokenizer of 262,000 tokens takes a quarter of it."""
LENGTH: Final = struct.Struct("!I")
# All that such a process sees of the variables of who starts it, some of which are secrets.
_INHERITED: Final = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR")

_is_confined = False


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process that confines itself, of those of the process that starts it."""
    return {name: environ[name] for name in _INHERITED if name in environ} | ENVIRONMENT


def is_confined() -> bool:
    """Whether this process may run the code of others."""
    return _is_confined


def confine() -> None:
    """Bounds this process's memory, and hides torch from it.

    An import of torch fails from here on, which transformers takes as its absence: tokenizers do without, and
    the process starts in half the time and a third of the memory.
    """
    global _is_confined  # noqa: PLW0603  # a state of the process
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.modules["torch"] = None  # type: ignore[assignment]
    _is_confined = True


def limit_cpu(seconds: int) -> None:
    """Of what comes now: the system ends the process after it."""
    end = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))


def pipes() -> tuple[BinaryIO, BinaryIO]:
    """Where requests come from and answers go to. What libraries print goes to standard error."""
    # A terminal's ^C is for who started this process, and finishes what it has begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, answers


def read(source: IO[bytes]) -> dict[str, Any] | None:
    """The next message; None at the end, be it amid a message."""
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    content = source.read(length)
    return dict(json.loads(content)) if len(content) == length else None


def write(target: IO[bytes], message: Mapping[str, Any]) -> None:
    content = json.dumps(message).encode()
    target.write(LENGTH.pack(len(content)) + content)
    target.flush()
