"""One deployment on this machine: its replicas, brought to the desired state, and who answers a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from neuroweaver.cluster.errors import Trouble
from neuroweaver.deployer.domain.backend import DesiredState, Key, Line, Measured, Observed
from neuroweaver.deployer.local.files.supplies import Supplies
from neuroweaver.deployer.local.replicas import log_files, record
from neuroweaver.deployer.local.replicas.launch import Launch
from neuroweaver.deployer.local.replicas.meter import Meter
from neuroweaver.deployer.local.replicas.processes import Process
from neuroweaver.deployer.local.replicas.replacement import Steps, There, next_steps
from neuroweaver.deployer.local.replicas.replica import Adopted, Replica, ReplicaContext
from neuroweaver.deployer.local.replicas.restarts import Policy
from neuroweaver.deployer.local.routes import RECORDS, Report, Route, Table
from neuroweaver.deployer.local.scaling.sizing import Load, Sizing
from neuroweaver.deployer.routing.shares import percent
from neuroweaver.mesh.handlers.loop import Outage
from neuroweaver.v1 import deployer_pb2 as pb

_LOG: Final = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""Between two looks at the load."""
_TABLE: Final = "routes.json"
_KEPT_LOGS: Final = 5
_REASONS: Final = {
    Trouble.ARTIFACTS: "ARTIFACT_CORRUPT",
    Trouble.NO_ROOM: "DISK_FULL",
    Trouble.UNREACHABLE: "REGISTRY_UNREACHABLE",
}


def _kept_table(file: Path) -> Table | None:
    """None if there is none that can be read."""
    try:
        return RECORDS.load(Table, file.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Fleet:
    """Only the event loop's thread touches it. touched: called at once when something changed that the router
    may have to know; moved: soon after.
    """

    def __init__(
        self,
        resource_name: str,
        folder: Path,
        context: ReplicaContext,
        supply: Callable[[Path, Callable[[], None]], Supplies],
        moved: Callable[[Fleet], None],
        touched: Callable[[], None],
    ) -> None:
        self.key: Key | None = None
        self._resource_name = resource_name
        self._folder = folder
        self._tell = moved
        self._touched = touched
        self._moved = asyncio.Event()
        self._supplies = supply(folder / "bundles", self._moved.set)
        self._context = context
        self._wanted: DesiredState | None = None
        self._launches: dict[str, Launch] = {}
        self._replicas: dict[int, Replica] = {}
        self._sizing = Sizing()
        self._meter = Meter()
        self._report = Report()
        self._kept: Table | None = None
        self._swaps: dict[int, tuple[str, asyncio.Task[None]]] = {}
        self._unswappable: set[int] = set()
        self._is_ending = False
        self._generation = 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._task = asyncio.create_task(self._care())

    # What is done to it.

    def adopt(self, running: Mapping[Path, Process]) -> None:
        """Takes over what an earlier deployer started. running: processes by their configuration file."""
        if table := _kept_table(self._folder / _TABLE):
            self.key, self._kept = table.key, table
        for folder in self._folders():
            process = running.get(folder / "config.json")
            if process is None:
                continue
            kept = record.read(folder)
            if kept is None:
                _LOG.warning("a process without a record is ended", extra={"pid": process.identity.pid})
                process.kill()
            else:
                _LOG.info("a replica is adopted", extra={"replica": self._replica_id(kept.number)})
                self._add(kept.number, Adopted(kept, process))

    def aim_at(self, wanted: DesiredState) -> None:
        """Brings what is there nearer to it, now and from now on. Raises BackendError."""
        self.key, self._wanted, self._is_ending = wanted.key, wanted, False
        self._touched()
        self._supplies.resume()
        there = Counter(each.revision for each in self._replicas.values() if not each.is_leaving)
        self._sizing.aim_at(wanted.revisions, there, time.monotonic())
        launches = [Launch.of(wanted, revision) for revision in wanted.revisions]
        self._launches = {launch.target: launch for launch in launches}
        policy = Policy.of(wanted.spec)
        for each in self._replicas.values():
            each.policy = policy
        if any(self._sizing.desired.values()):
            for launch in launches:
                self._supplies.pull(launch.bundle)
        self.step()
        for launch in launches:
            if trouble := self._supplies.troubles.get(launch.bundle.digest):
                raise trouble

    def step(self) -> None:
        """Starts, stops and swaps what can be now."""
        self._forget_gone()
        if self._wanted is None or self._is_ending:
            return
        for each in self._replicas.values():
            if launch := self._launches.get(each.target):
                each.launch_as(launch)
        steps = self._next_steps(self._wanted)
        for target, missing in steps.starts.items():
            for _ in range(missing):
                self._add(self._next_number(), self._launches[target])
        for number in steps.stops:
            each = self._replicas[number]
            each.leave(each.policy.drain_timeout_s)
        for number, target in steps.swaps:
            task = asyncio.create_task(self._swap(self._replicas[number], self._launches[target]))
            self._swaps[number] = (target, task)
        if all(each.target in self._launches for each in self._replicas.values()):
            self._supplies.keep_only({launch.bundle.digest for launch in self._launches.values()})

    def remove(self, spec: pb.DeploymentSpec) -> bool:
        """Drains as the spec says; True once nothing is left."""
        self._touched()
        for each in self._replicas.values():
            each.policy = Policy.of(spec)
        self._end()
        self._forget_gone()
        return not self._replicas

    async def delete(self) -> None:
        """Once `remove` gave True."""
        await self._stop_care()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def close(self, within_s: float) -> None:
        """Drains for at most that long. After this no process of it is left."""
        self._end(within_s)
        await asyncio.gather(*(each.gone() for each in self._replicas.values()))
        await self._stop_care()

    # What the router is told, and tells.

    def table(self) -> Table | None:
        """None as long as it is not known whose it is."""
        if self.key is None:
            return None
        ready = [each for each in self._replicas.values() if each.is_ready]
        routes = tuple(Route(each.replica_id, each.revision, each.base_url) for each in ready)
        if self._wanted is None:
            # What an earlier deployer knew holds until this one has looked at the deployment.
            known = self._kept or Table(self._resource_name, self.key)
            return replace(known, routes=routes, is_expected=bool(self._replicas), is_awaited=False)
        return Table(
            self._resource_name,
            self.key,
            routes,
            self.weights(),
            tuple(each.number for each in self._wanted.revisions if each.weight_percent),
            is_affine=self._wanted.spec.rollout.session_affinity != pb.SESSION_AFFINITY_NONE,
            is_expected=self.is_expected(),
            is_awaited=self._is_awaited(),
            redirect=self._wanted.redirect,
        )

    def keep(self, table: Table) -> None:
        """For the next deployer, should this one be killed. Raises OSError."""
        if table != self._kept:
            record.write_json(self._folder / _TABLE, RECORDS.plain(table))
            self._kept = table

    def hear(self, report: Report) -> None:
        """What the router saw by now."""
        if report.calls != self._report.calls:
            self._sizing.called(time.monotonic())
        self._report = report
        self._meter.counts = report.counts
        for each in self._replicas.values():
            each.in_flight = report.in_flight.get(each.replica_id, 0)
        if report.waiting:
            self.wake()

    def wake(self) -> None:
        """A request waits: starts a replica of a deployment that sleeps."""
        self._sizing.called(time.monotonic())  # which the next report tells, after the next look perhaps
        if not self._is_ending and self._sizing.wake():
            self._note()
            self.step()

    def is_expected(self) -> bool:
        """Whether something will serve by itself before long."""
        return not self._is_ending and any(self._sizing.desired.values())

    def weights(self) -> dict[int, float]:
        """Where the traffic goes now: only to what is ready.

        While a revision takes over from others, it has as much of its weight as of its replicas.
        """
        if self._wanted is None or self._is_ending:
            return {}
        ready = Counter(each.revision for each in self._replicas.values() if each.is_ready)
        wished = {each.number: float(each.weight_percent) for each in self._wanted.revisions}
        weights = {each: weight for each, weight in wished.items() if weight and ready[each]}
        retiring = {each: number for each, number in ready.items() if each not in wished}
        if not retiring or not any(wished.values()):
            return weights
        newest = self._wanted.revisions[-1].number
        rest = 100.0
        if weights:
            share = min(1.0, ready[newest] / max(1, self._sizing.desired[newest]))
            rest = wished[newest] * (1 - share)
            weights[newest] = wished[newest] * share
        for each, number in retiring.items():
            weights[each] = rest * number / sum(retiring.values())
        return {each: weight for each, weight in weights.items() if weight > 0}

    # What the reconcile loop asks.

    def observe(self, endpoint: str) -> Observed:
        replicas = [each for each in self._replicas.values() if not each.is_gone]
        return Observed(
            exists=True,
            endpoint=endpoint,
            replicas=tuple(each.shown() for each in sorted(replicas, key=lambda each: each.number)),
            desired=dict(self._sizing.desired),
            weights=percent(self.weights()),
            is_idle=self._sizing.is_asleep and not replicas,
            scalings=self._sizing.take_scalings(),
            reasons=tuple(self._reasons()),
            applied_generation=self._applied_generation(),
        )

    async def lines(self, since: Mapping[str, str]) -> AsyncIterator[Line]:
        for folder in self._folders():
            replica_id = self._replica_id(int(folder.name))
            cursor = since.get(replica_id, "")
            for line in await asyncio.to_thread(log_files.lines, folder, replica_id, cursor):
                yield line

    async def measure(self) -> Sequence[Measured]:
        wished = [each.number for each in self._wanted.revisions] if self._wanted else []
        return await self._meter.measure(self._context.client, wished, self.replicas)

    @property
    def replicas(self) -> tuple[Replica, ...]:
        return tuple(self._replicas.values())

    def free_numbers(self) -> Iterator[int]:
        """Those of the replicas that come next."""
        return count(self._next_number())

    # How it goes on.

    async def _care(self) -> None:
        look_at = time.monotonic() + LOOK_S
        outage = Outage("replicas", resource=self._resource_name)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + LOOK_S):
                    await self._moved.wait()
            has_moved = self._moved.is_set()
            self._moved.clear()
            with outage.survived():
                if (now := time.monotonic()) >= look_at:
                    look_at = now + LOOK_S
                    has_moved |= self._size(now)
                self.step()
            if has_moved:
                self._tell(self)

    async def _stop_care(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    def _size(self, now: float) -> bool:
        """Looks at the load; whether another number of replicas is aimed at now."""
        replicas = self.replicas
        calling = self._report.waiting + sum(each.in_flight for each in replicas)
        before = dict(self._sizing.desired)
        self._sizing.look(Load(self._meter.look(replicas, now), bool(calling)), now)
        has_changed = before != self._sizing.desired
        if has_changed:
            self._touched()
        return has_changed

    def _end(self, within_s: float | None = None) -> None:
        self._is_ending = True
        for each in self._replicas.values():
            drain_s = each.policy.drain_timeout_s
            each.leave(drain_s if within_s is None else min(drain_s, within_s))
        self._supplies.end()

    def _next_steps(self, wanted: DesiredState) -> Steps:
        rollout, mode = wanted.spec.rollout, wanted.replacement or pb.REPLACEMENT_MODE_SURGE
        if mode == pb.REPLACEMENT_MODE_RECREATE and self._is_unprepared():
            return Steps()
        surge = rollout.max_surge if rollout.HasField("max_surge") else 1
        # Where a swap fails, the replica is started anew, perhaps without room beside it.
        spare = max(rollout.max_unavailable, int(mode == pb.REPLACEMENT_MODE_SWAP_ADAPTER))
        desired = {target: self._sizing.desired[launch.revision] for target, launch in self._launches.items()}
        return next_steps(desired, self._there(), mode, max_surge=surge, max_unavailable=spare)

    def _is_unprepared(self) -> bool:
        """Something is to be replaced by what is not on this machine yet, and perhaps cannot be had."""
        is_replacing = any(each.target not in self._launches for each in self._replicas.values())
        return is_replacing and not all(
            self._supplies.has(launch.bundle)
            for launch in self._launches.values()
            if self._sizing.desired[launch.revision]
        )

    def _there(self) -> list[There]:
        frames = {launch.frame for launch in self._launches.values()} - {""}
        return [
            There(
                each.number,
                self._swaps[each.number][0] if each.number in self._swaps else each.target,
                each.is_ready,
                each.is_leaving,
                can_swap=each.frame in frames and each.number not in self._unswappable,
            )
            for each in self._replicas.values()
        ]

    def _applied_generation(self) -> int:
        """Rises once every desired process has been started, and no other is left."""
        if self._wanted is None or self._is_ending:
            return self._generation
        is_known = all(each.was_started and each.target in self._launches for each in self.replicas)
        if is_known and self._next_steps(self._wanted).is_nothing:
            self._generation = self._wanted.generation
        return self._generation

    async def _swap(self, replica: Replica, launch: Launch) -> None:
        try:
            if not await replica.swap(launch):
                self._unswappable.add(replica.number)
        finally:
            self._swaps.pop(replica.number, None)
            self._moved.set()

    def _add(self, number: int, start: Launch | Adopted) -> None:
        folder = self._folder / str(number)
        folder.mkdir(mode=0o700, exist_ok=True)
        policy = Policy.of(self._wanted.spec) if self._wanted else Policy()
        replica_id = self._replica_id(number)
        self._replicas[number] = Replica(
            replica_id, folder, start, policy, self._context, self._supplies, self._note
        )

    def _forget_gone(self) -> None:
        gone = [number for number, each in self._replicas.items() if each.is_gone]
        for number in gone:
            del self._replicas[number]
            self._unswappable.discard(number)
        if gone:
            # Their logs are still wanted, those of the last few.
            silent = [folder for folder in self._folders() if int(folder.name) not in self._replicas]
            for folder in silent[:-_KEPT_LOGS]:
                shutil.rmtree(folder, ignore_errors=True)

    def _replica_id(self, number: int) -> str:
        return f"{self._resource_name}-{number}"

    def _folders(self) -> list[Path]:
        """Of the replicas that there are and were, the oldest first."""
        numbered = [path for path in self._folder.iterdir() if path.name.isdecimal()]
        return sorted(numbered, key=lambda path: int(path.name))

    def _next_number(self) -> int:
        folders = self._folders()
        return int(folders[-1].name) + 1 if folders else 1

    def _note(self) -> None:
        self._moved.set()
        self._touched()

    def _is_awaited(self) -> bool:
        """May sleep, and aims at replicas or can be woken."""
        can_wake = bool(self._sizing.asleep) and not self._is_ending
        return self._sizing.may_sleep and (self.is_expected() or can_wake)

    def _reasons(self) -> list[tuple[str, str]]:
        troubles = self._supplies.troubles.values()
        reasons = [(_REASONS.get(each.trouble, str(each.trouble)), str(each)) for each in troubles]
        for each in self._replicas.values():
            shown = each.shown()
            if shown.phase == pb.REPLICA_PHASE_CRASH_LOOP:
                reasons.append(("CRASH_LOOP", shown.message))
            if each.oom_killed:
                reasons.append(("OOM_KILLED", each.oom_killed))
            if each.lacks:
                reasons.append((f"INSUFFICIENT_{each.lacks.upper()}", shown.message))
        return list(dict.fromkeys(reasons))
