"""FakeBackend: replicas in memory that go through their phases when a test says so, and calls that fail on demand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.domain.backend import (
    BackendPlan,
    DesiredState,
    FieldChange,
    Finding,
    Key,
    Line,
    Measured,
    Observed,
    Planned,
    Replica,
    Scaling,
)
from neuroweaver.mesh.wire.clock import utc_now
from neuroweaver.v1 import deployer_pb2 as pb

COURSE = (
    pb.REPLICA_PHASE_SCHEDULING,
    pb.REPLICA_PHASE_PULLING,
    pb.REPLICA_PHASE_LOADING,
    pb.REPLICA_PHASE_WARMING,
    pb.REPLICA_PHASE_READY,
)


@dataclass
class Place:
    """What is there of one deployment."""

    wanted: DesiredState
    replicas: dict[str, Replica] = field(default_factory=dict)
    started: int = 0


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the caller's runs after it."""


class FakeBackend:
    """What lives here stands for processes or pods, so it outlives the loop that a test kills.

    is_quick: a replica is ready at once; else it takes one phase at every look. broken: revisions, or versions,
    whose replicas crash. is_replacing: something of what it replaces is left. fail: called with the number of each
    call and its name before anything is done, and again with a name that ends in `!` after it was done; what it
    raises comes out.
    """

    def __init__(self) -> None:
        self.places: dict[Key, Place] = {}
        self.is_quick = True
        self.broken: set[str] = set()
        self.fail: Callable[[int, str], None] = lambda _number, _name: None
        self.calls: list[str] = []
        self.findings: tuple[Finding, ...] = ()
        self.drift: tuple[FieldChange, ...] = ()
        self.reasons: tuple[tuple[str, str], ...] = ()
        self.scalings: tuple[Scaling, ...] = ()
        self.desired: dict[int, int] = {}
        self.is_idle = False
        self.is_replacing = False
        self.replacement: pb.ReplacementMode.ValueType = pb.REPLACEMENT_MODE_SURGE
        self.counts: dict[int, Measured] = {}
        self.lines: dict[Key, list[Line]] = {}
        self.at_work: Counter[Key] = Counter()
        self.most_at_work = 0
        self.names: set[str] = set()
        self._changed: set[Callable[[Key], None]] = set()

    async def plan(self, wanted: DesiredState) -> BackendPlan:
        self._call("plan")
        place = self.places.get(wanted.key)
        action = pb.PLANNED_ACTION_UPDATE if place else pb.PLANNED_ACTION_CREATE
        if place and (place.wanted.spec, place.wanted.revisions) == (wanted.spec, wanted.revisions):
            action = pb.PLANNED_ACTION_UNCHANGED
        manifest = f"name: {wanted.resource_name}\nrevisions: {[each.number for each in wanted.revisions]}\n"
        thing = Planned("fake/v1", "Thing", "", wanted.resource_name, action, manifest)
        mode = wanted.spec.rollout.replacement or self.replacement
        return BackendPlan((thing,), self.findings, (), mode, "as the test says", has_downtime=False)

    async def apply(self, wanted: DesiredState) -> None:
        self._call("apply")
        async with self._working_on(wanted.key):
            place = self.places.setdefault(wanted.key, Place(wanted))
            place.wanted = wanted
            self.names.add(wanted.resource_name)
            there = Counter(each.revision for each in place.replicas.values())
            for revision in wanted.revisions:
                count = self.desired.get(revision.number, revision.replicas)
                for _ in range(count - there[revision.number]):
                    place.started += 1
                    replica_id = f"{wanted.resource_name}-{place.started}"
                    place.replicas[replica_id] = Replica(
                        replica_id,
                        revision.number,
                        COURSE[-1] if self.is_quick else COURSE[0],
                        start_time=utc_now(),
                        last_token_time=utc_now() if self.is_quick else None,
                        loaded_versions=(revision.bundle.version,),
                    )
                own = [each for each in place.replicas.values() if each.revision == revision.number]
                for each in own[count:]:
                    del place.replicas[each.replica_id]
            numbers = {each.number for each in wanted.revisions}
            for each in list(place.replicas.values()):
                if each.revision not in numbers:
                    del place.replicas[each.replica_id]
            self._break(place)
        self._call("apply!")

    async def observe(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> Observed:
        self._call("observe")
        place = self.places.get(key)
        if place is None:
            return Observed()
        seen = Observed(
            exists=True,
            endpoint=f"http://127.0.0.1:1/{resource_name}/v1",
            replicas=tuple(place.replicas.values()),
            desired={
                each.number: self.desired.get(each.number, each.replicas) for each in place.wanted.revisions
            },
            weights={each.number: each.weight_percent for each in place.wanted.revisions},
            is_idle=self.is_idle,
            drift=self.drift,
            reasons=self.reasons,
            scalings=self.scalings,
            applied_generation=place.wanted.generation - self.is_replacing,
        )
        self._advance(place)
        return seen

    async def remove(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> bool:
        self._call("remove")
        place = self.places.get(key)
        if place is None:
            return True
        # One replica at a time, so that it takes several calls.
        if place.replicas:
            place.replicas.popitem()
        else:
            del self.places[key]
        self._call("remove!")
        return key not in self.places

    async def logs(
        self, key: Key, resource_name: str, spec: pb.DeploymentSpec, since: Mapping[str, str]
    ) -> AsyncIterator[Line]:
        self._call("logs")
        for line in list(self.lines.get(key, [])):
            if int(line.cursor) > int(since.get(line.replica_id, "0")):
                yield line

    async def measure(self, key: Key, resource_name: str, spec: pb.DeploymentSpec) -> Sequence[Measured]:
        self._call("measure")
        return list(self.counts.values())

    async def run(self, changed: Callable[[Key], None]) -> None:
        self._changed.add(changed)
        try:
            await asyncio.Event().wait()
        finally:
            self._changed.discard(changed)

    @property
    def is_watched(self) -> bool:
        return bool(self._changed)

    def change(self, key: Key) -> None:
        """Says that something moved, as a watch of a cluster would."""
        for changed in list(self._changed):
            changed(key)

    def set_phase(self, key: Key, phase: Any, *, revision: int = 0, **fields: Any) -> None:
        """Of all replicas of a deployment, or of those of a revision."""
        replicas = self.places[key].replicas
        for each in list(replicas.values()):
            if revision in {0, each.revision}:
                replicas[each.replica_id] = replace(each, phase=phase, **fields)

    def log(self, key: Key, replica_id: str, message: str, revision: int = 1, level: str = "INFO") -> None:
        lines = self.lines.setdefault(key, [])
        lines.append(Line(replica_id, revision, utc_now(), message, level, str(len(lines) + 1)))

    def _advance(self, place: Place) -> None:
        for each in list(place.replicas.values()):
            if each.phase in COURSE[:-1]:
                phase = COURSE[COURSE.index(each.phase) + 1]
                token_time = utc_now() if phase == COURSE[-1] else None
                place.replicas[each.replica_id] = replace(each, phase=phase, last_token_time=token_time)
        self._break(place)

    def _break(self, place: Place) -> None:
        versions = {each.number: each.bundle.version for each in place.wanted.revisions}
        for each in list(place.replicas.values()):
            is_broken = versions.get(each.revision) in self.broken
            if is_broken and each.phase != pb.REPLICA_PHASE_CRASH_LOOP:
                place.replicas[each.replica_id] = replace(
                    each,
                    phase=pb.REPLICA_PHASE_CRASH_LOOP,
                    message="ValueError: no such layer",
                    last_exit=4,
                    restarts=5,
                    restart_at=utc_now() + timedelta(minutes=5),
                )

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self.fail(len(self.calls), name)

    @asynccontextmanager
    async def _working_on(self, key: Key) -> AsyncIterator[None]:
        """Counts how many work on one deployment at a time."""
        self.at_work[key] += 1
        self.most_at_work = max(self.most_at_work, self.at_work[key])
        try:
            await asyncio.sleep(0)
            yield
        finally:
            self.at_work[key] -= 1


def unreachable() -> BackendError:
    return BackendError(Trouble.UNREACHABLE, "connection refused")
