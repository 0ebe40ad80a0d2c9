"""What this machine has, and who holds how much of it: the scheduler of the local backend."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from neuroweaver.cluster import quantities
from neuroweaver.deployer.domain.backend import Bundle
from neuroweaver.deployer.local.machine import gpus
from neuroweaver.v1 import deployer_pb2 as pb

_CGROUP: Final = Path("/sys/fs/cgroup")
_RUNTIME_BYTES: Final = 1 << 30
"""What interpreter, libraries and the computation itself take beside the weights."""


@dataclass(frozen=True)
class Need:
    """What is set aside for one replica."""

    cores: float = 0.0
    memory_bytes: int = 0
    gpus: int = 0

    def __add__(self, other: Need) -> Need:
        return self._with(other, operator.add)

    def __sub__(self, other: Need) -> Need:
        return self._with(other, operator.sub)

    def __mul__(self, replicas: int) -> Need:
        return self._with(Need(replicas, replicas, replicas), operator.mul)

    def most(self, other: Need) -> Need:
        """Of each resource the larger amount."""
        return self._with(other, max)

    def _with(self, other: Need, both: Callable[[Any, Any], Any]) -> Need:
        return Need(
            both(self.cores, other.cores),
            both(self.memory_bytes, other.memory_bytes),
            both(self.gpus, other.gpus),
        )

    def fits(self, free: Need) -> bool:
        # A thousandth of a core is the smallest quantity there is.
        has_cores = self.cores <= free.cores + 0.0005
        return has_cores and self.memory_bytes <= free.memory_bytes and self.gpus <= free.gpus


@dataclass(frozen=True)
class Lack:
    """resource: `cpu`, `memory` or `gpu`. message: how much is needed and how much there is."""

    resource: str
    message: str


def lack(need: Need, free: Need) -> Lack:
    """Of a need that does not fit."""
    if need.gpus > free.gpus:
        return Lack("gpu", f"needs {need.gpus} GPU{'s' * (need.gpus > 1)}, and {free.gpus} are free")
    if need.memory_bytes > free.memory_bytes:
        wanted, left = quantities.of_bytes(need.memory_bytes), quantities.of_bytes(free.memory_bytes)
        return Lack("memory", f"needs {wanted} of memory, and {left} are free")
    return Lack(
        "cpu", f"needs {quantities.of_cores(need.cores)} CPU, and {quantities.of_cores(free.cores)} are free"
    )


def need_of(resources: pb.ReplicaResources, bundle: Bundle) -> Need:
    memory = resources.memory_request
    return Need(
        float(quantities.amount(resources.cpu_request or "1")),
        int(quantities.amount(memory)) if memory else estimated_memory(bundle.size_bytes),
        resources.gpus,
    )


def estimated_memory(weights_bytes: int) -> int:
    """Bytes that a replica takes: the weights once as stored and once more while they are converted."""
    return _RUNTIME_BYTES + 2 * weights_bytes


@dataclass(frozen=True)
class Machine:
    """available_bytes: memory that programs could still take; asked each time. gpus: names, as in `gpus`."""

    cores: float
    memory_bytes: int
    available_bytes: Callable[[], int]
    gpus: tuple[str, ...] = ()


def this_machine(environ: Mapping[str, str]) -> Machine:
    """As far as this process may use it: its CPU affinity, the bounds of its container and
    CUDA_VISIBLE_DEVICES count. Blocks while the GPUs are looked for.
    """
    total, bound = psutil.virtual_memory().total, _words("memory.max")
    memory = min(total, int(bound[0]) or total) if bound and bound[0].isdecimal() else total
    return Machine(
        cores=_cores(),
        memory_bytes=memory,
        available_bytes=lambda: min(memory, psutil.virtual_memory().available),
        gpus=gpus.of_machine(environ),
    )


class Room:
    """Who holds what. Without a lock: only the event loop's thread asks."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._held: dict[str, Need] = {}
        self._gpus: dict[str, tuple[str, ...]] = {}
        self._pids: dict[str, int] = {}

    def take(self, holder: str, need: Need) -> Lack | None:
        """Sets it aside, unless it does not fit. None: done, perhaps long ago."""
        if holder in self._held:
            return None
        free = self.free()
        if need.fits(free):
            self._held[holder] = need
            self._gpus[holder] = self._free_gpus()[: need.gpus]
            return None
        return lack(need, free)

    def hold(self, holder: str, need: Need, devices: Sequence[str]) -> None:
        """For a process that is there already and has these GPUs, whether it fits or not."""
        self._held[holder] = need
        self._gpus[holder] = tuple(devices)

    def gpus_of(self, holder: str) -> tuple[str, ...]:
        """The names of those that are its own."""
        return self._gpus.get(holder, ())

    def runs_as(self, holder: str, pid: int) -> None:
        """The memory that this process uses already is part of what its holder set aside."""
        self._pids[holder] = pid

    def give_back(self, holder: str) -> None:
        self._held.pop(holder, None)
        self._gpus.pop(holder, None)
        self._pids.pop(holder, None)

    def free(self, *, besides: Collection[str] = ()) -> Need:
        """What is set aside for nobody, or only for `besides`."""
        machine = self.machine
        others = [need for holder, need in self._held.items() if holder not in besides]
        in_use = sum(_resident(pid) for pid in self._pids.values())
        memory = min(machine.memory_bytes, machine.available_bytes() + in_use)
        return Need(
            max(0.0, machine.cores - sum(need.cores for need in others)),
            max(0, memory - sum(need.memory_bytes for need in others)),
            len(self._free_gpus(besides)),
        )

    def _free_gpus(self, besides: Collection[str] = ()) -> tuple[str, ...]:
        taken = [each for holder, names in self._gpus.items() if holder not in besides for each in names]
        # What an earlier deployer gave away may have had another name then.
        return tuple(
            each for each in self.machine.gpus if not any(gpus.may_be_same(each, other) for other in taken)
        )


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _cores() -> float:
    try:
        count = float(len(os.sched_getaffinity(0)))
    except AttributeError:
        count = float(os.cpu_count() or 1)
    quota = _words("cpu.max")
    if len(quota) == 2 and quota[0].isdecimal():
        count = min(count, int(quota[0]) / int(quota[1]))
    return count


def _words(name: str) -> list[str]:
    try:
        return (_CGROUP / name).read_text(encoding="ascii").split()
    except OSError:
        return []
