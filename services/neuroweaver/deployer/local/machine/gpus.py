"""The GPUs of this machine, named as CUDA_VISIBLE_DEVICES names them.

https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#cuda-environment-variables
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_LINE: Final = re.compile(r"\s*(GPU|MIG) .*\(UUID: ([\w/-]+)\)")
_DEVICES: Final = Path("/dev")
_PATIENCE_S: Final = 20.0
"""Without its persistence daemon the driver wakes every GPU first."""


def of_machine(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Those that a process with this environment may use: by UUID if nvidia-smi works, else by index.

    Blocks.
    """
    return allowed(_by_uuid() or _by_index(), environ.get(VISIBLE))


def listed(lines: str) -> tuple[str, ...]:
    """The UUIDs in the output of `nvidia-smi -L`: of a GPU that is partitioned (MIG), those of its parts."""
    names: list[str] = []
    for kind, name in (found.groups() for line in lines.splitlines() if (found := _LINE.match(line))):
        if kind == "MIG" and names and names[-1].startswith("GPU"):
            names.pop()
        names.append(name)
    return tuple(names)


def allowed(there: Sequence[str], visible: str | None) -> tuple[str, ...]:
    """Of what is there, what CUDA_VISIBLE_DEVICES leaves; None: it is not set.

    As CUDA reads it: what stands behind a name that is none, or is there twice, does not count. An index
    stays one, since only CUDA knows in which order it counts.
    """
    if visible is None:
        return tuple(there)
    names: list[str] = []
    for word in visible.split(","):
        name = _known(word.strip(), there)
        if not name or name in names:
            break
        names.append(name)
    return tuple(names)


def may_be_same(one: str, other: str) -> bool:
    """Whether two names can mean one GPU: an index can be that of any UUID, and UUIDs may be shortened."""
    if one.isdecimal() or other.isdecimal():
        return one == other or one.isdecimal() != other.isdecimal()
    return one.startswith(other) or other.startswith(one)


def _known(word: str, there: Sequence[str]) -> str:
    if word.isdecimal():
        return word if int(word) < len(there) else ""
    if not word.startswith(("GPU-", "MIG-")):
        return ""
    if all(name.isdecimal() for name in there):
        return word if there else ""
    return next((name for name in there if name.startswith(word)), "")


def _by_uuid() -> tuple[str, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run(  # noqa: S603  # found on the deployer's own path
            [program, "-L"], capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return listed(done.stdout) if done.returncode == 0 else ()


def _by_index() -> tuple[str, ...]:
    """A container may hold /dev/nvidia3 alone, which CUDA counts as 0."""
    return tuple(str(index) for index, _ in enumerate(_DEVICES.glob("nvidia[0-9]*")))
