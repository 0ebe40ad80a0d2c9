"""The loop that brings what is there to the desired state, whoever was restarted in between.

It is level-triggered: every look reads the whole desired state from the database and the whole truth from the
backend, and what follows depends on nothing else. A look that dies at any point is simply taken again. What
wakes it, a change in the backend, a write, a timer, only says when, never what.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeVar

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.control import gauges, progress
from neuroweaver.deployer.control.collecting import LogCollector
from neuroweaver.deployer.control.recent import Memory, Recent
from neuroweaver.deployer.domain import desired
from neuroweaver.deployer.domain.backend import Backend, DesiredState, Key, Measured, Observed, Redirect
from neuroweaver.deployer.domain.metrics.measurement import Tally
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.deployer.planning import Backends
from neuroweaver.deployer.storage.lease import Lease, LeaseLost
from neuroweaver.deployer.storage.reader import Reader
from neuroweaver.deployer.storage.store import Store
from neuroweaver.deployer.storage.writer import Writer, by_itself
from neuroweaver.mesh.handlers.loop import Outage, repeat
from neuroweaver.mesh.handlers.signals import Signal
from neuroweaver.mesh.wire.clock import brought_back
from neuroweaver.v1 import deployer_pb2 as pb

_LOG: Final = logging.getLogger("neuroweaver.deployer")

T = TypeVar("T")


@dataclass(frozen=True)
class Pace:
    """How often things are done, in seconds.

    settled, moving: between two looks at a deployment that is as it should be, and at one that is not. least:
    between any two, however often it is woken. listed: between two looks for deployments without a wake-up.
    call: the longest that a backend may take to answer. max_backoff: after repeated trouble.
    """

    settled_s: float = 10.0
    moving_s: float = 1.0
    least_s: float = 0.1
    measured_s: float = 5.0
    logged_s: float = 1.0
    listed_s: float = 5.0
    call_s: float = 60.0
    max_backoff_s: float = 60.0


PACE: Final = Pace()

_SETTLED: Final = frozenset({pb.DEPLOYMENT_STATE_READY, pb.DEPLOYMENT_STATE_IDLE})
# How long it is remembered where the log of a replica that is gone was read to.
_CURSORS_KEPT: Final = timedelta(hours=1)


@dataclass(frozen=True)
class Look:
    """What came of one look. delay_s: until the next one, unless something happens before."""

    delay_s: float
    is_gone: bool = False
    trouble: BackendError | None = None


@dataclass
class _Tended:
    """What is remembered of a deployment between two looks.

    troubles: looks in a row that met trouble. measured_at: when measurements were kept last. swept_at: when
    cursors of logs were last looked through.
    """

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    worker: asyncio.Task[None] | None = None
    troubles: int = 0
    measured_at: datetime | None = None
    swept_at: datetime | None = None


class Reconciler:
    def __init__(self, store: Store, backends: Backends, *, pace: Pace = PACE) -> None:
        self.logs = LogCollector(store, backends, period_s=pace.logged_s, call_s=pace.call_s)
        self._store = store
        self._backends = backends
        self._pace = pace
        self._tended: dict[Key, _Tended] = {}
        self._measured_every = timedelta(seconds=pace.measured_s)
        self._memory = Memory()
        self._is_new = Signal()
        store.listen(self.wake)

    def wake(self, key: Key) -> None:
        """Has a deployment looked at soon. Callable at any time, also for one that nobody tends yet."""
        tended = self._tended.get(key)
        if tended is not None and tended.worker is not None:
            tended.wake.set()
        else:
            self._is_new.notify()

    async def lead(self, lease: Lease | None = None) -> None:
        """Tends every deployment until cancelled. Raises a group of LeaseLost once the lease is another's."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for backend in dict.fromkeys(self._backends.values()):
                    tasks.create_task(self._watch(backend))
                turn = partial(self._employ, tasks, lease)
                await repeat("deployments", turn, self._pace.listed_s, wake=self._is_new)
        finally:
            self._tended.clear()
            gauges.hide_all()
            self._memory.clear()

    async def look(self, key: Key, lease: Lease | None = None) -> Look:
        """Applies the desired state of one deployment, sees what is there, and notes what follows."""
        async with self._store.read(key.project) as deployments:
            kept = await deployments.find(key)
            redirect = await _redirect(deployments, kept.deployment) if kept else None
        if kept is None or kept.deployment.is_gone:
            if kept is not None:
                gauges.show(kept.deployment)
            return Look(0.0, is_gone=True)
        deployment = kept.deployment
        tended = self._tended.setdefault(key, _Tended())
        wanted = desired.state(deployment, redirect)
        backend = self._backends.get(deployment.spec.backend)
        is_removed, observed, measured = False, None, list[Measured]()
        trouble: BackendError | None
        if backend is None:
            trouble = BackendError(Trouble.NOT_CONFIGURED, "This deployer has no backend of that kind.")
        else:
            is_removed, observed, trouble = await self._applied(backend, deployment, wanted)
            if observed is not None and observed.replicas:
                measured = await self._measured(backend, deployment, tended)
        seen = progress.Look(
            deployment.generation, observed, trouble, {own.revision: own for own in measured}
        )
        after = await self._note(key, seen, tended, lease, is_removed=is_removed)
        if after is None or after.is_gone:
            return Look(0.0, is_gone=True, trouble=trouble)
        is_behind = not after.is_being_removed and desired.state(after, redirect) != wanted
        return Look(self._delay_s(after, trouble, tended, is_behind=is_behind), trouble=trouble)

    async def _applied(
        self, backend: Backend, deployment: Deployment, wanted: DesiredState
    ) -> tuple[bool, Observed | None, BackendError | None]:
        """Whether it was to be removed and nothing is left; what is there now; and the first trouble."""
        observed, trouble = None, None
        try:
            if not deployment.is_being_removed:
                await self._in_time(backend.apply(wanted))
            elif await self._in_time(backend.remove(*_place(deployment))):
                return True, None, None
        except BackendError as error:
            trouble = error
        try:
            observed = await self._in_time(backend.observe(*_place(deployment)))
        except BackendError as error:
            trouble = trouble or error
        return False, observed, trouble

    async def _measured(self, backend: Backend, deployment: Deployment, tended: _Tended) -> list[Measured]:
        """What replicas counted: at every look in a rollout, else once in a while.

        What cannot be asked is missing, and stays missing.
        """
        if not deployment.is_rolling and not self._is_past(tended.measured_at, self._measured_every):
            return []
        try:
            return list(await self._in_time(backend.measure(*_place(deployment))))
        except BackendError as error:
            _LOG.warning(
                "not measured", extra={"model_id": deployment.key.model_id, "cause": error.trouble.value}
            )
            return []

    def _is_past(self, last: datetime | None, period: timedelta) -> bool:
        return last is None or abs(self._store.clock() - last) >= period

    async def _note(
        self, key: Key, seen: progress.Look, tended: _Tended, lease: Lease | None, *, is_removed: bool
    ) -> Deployment | None:
        """What follows, decided on the deployment as it is by now. None if there is nothing left of it."""
        is_kept = bool(seen.measured) and self._is_past(tended.measured_at, self._measured_every)
        is_swept = seen.observed is not None and self._is_past(tended.swept_at, _CURSORS_KEPT)
        recent: Recent | None = None

        async def note(deployments: Writer) -> Deployment | None:
            nonlocal recent
            recent = None
            before, now = await deployments.find(key), deployments.now
            if before is None or before.deployment.is_gone:
                return None
            current = brought_back(before.deployment, now)
            if is_removed and current.is_being_removed:
                await deployments.forget_logs(key)
                return (await deployments.save(before, current.gone())).deployment
            if is_swept and seen.observed is not None:
                there = [replica.replica_id for replica in seen.observed.replicas]
                await deployments.forget_cursors(key, there, now - _CURSORS_KEPT)
            if is_kept:
                await deployments.add_tallies(key, _tallies(seen, now))
            recent = await self._memory.caught_up(deployments, current, now)
            background = await progress.background(deployments, current, seen, recent, now)
            outcome = progress.advanced(current, seen, background, now)
            kept = await deployments.save(
                before, outcome.deployment, reason=outcome.reason, cause=outcome.cause
            )
            return kept.deployment

        after = await self._store.transact(by_itself(key), note, lease=lease)
        if recent is not None:
            self._memory.keep(key, recent)
        if after is not None:
            gauges.show(after)
        if is_kept:
            tended.measured_at = self._store.clock()
        if is_swept:
            tended.swept_at = self._store.clock()
        return after

    def _delay_s(
        self, after: Deployment, trouble: BackendError | None, tended: _Tended, *, is_behind: bool
    ) -> float:
        """is_behind: something else is wanted than what was applied."""
        pace = self._pace
        if trouble is not None:
            tended.troubles += 1
            backoff_s = min(pace.moving_s * 2.0 ** (tended.troubles - 1), pace.max_backoff_s)
            return max(backoff_s, trouble.retry_after_s or 0.0)
        tended.troubles = 0
        if is_behind:
            return 0.0
        is_settled = after.status.state in _SETTLED and not after.is_rolling
        return pace.settled_s if is_settled else pace.moving_s

    async def _in_time(self, call: Awaitable[T]) -> T:
        """Raises BackendError also for a call that hangs, and for one that fails in an unforeseen way."""
        try:
            async with asyncio.timeout(self._pace.call_s):
                return await call
        except BackendError:
            raise
        except TimeoutError as error:
            raise BackendError(Trouble.UNREACHABLE, "The backend did not answer in time.") from error
        except Exception as error:
            _LOG.exception("the backend failed")
            raise BackendError(Trouble.UNREACHABLE, "The backend failed; its log says why.") from error

    async def _employ(self, tasks: asyncio.TaskGroup, lease: Lease | None) -> None:
        """One worker for each deployment that has none."""
        deployments = await self._store.everything()
        for key in [key for key, tended in self._tended.items() if tended.worker and tended.worker.done()]:
            del self._tended[key]
        for deployment in deployments:
            tended = self._tended.setdefault(deployment.key, _Tended())
            if tended.worker is None:
                tended.worker = tasks.create_task(self._tend(deployment.key, tended, lease))

    async def _tend(self, key: Key, tended: _Tended, lease: Lease | None) -> None:
        """One deployment, until it is gone. Raises LeaseLost."""
        outage = Outage("deployment", model_id=key.model_id, deployment=key.name)
        collecting = asyncio.create_task(self.logs.run(key, lease))
        try:
            while True:
                tended.wake.clear()
                look = None
                with outage.survived(LeaseLost):
                    look = await self.look(key, lease)
                if look is not None and look.is_gone:
                    return
                delay_s = outage.backoff_s if look is None else look.delay_s
                await asyncio.sleep(self._pace.least_s)
                await _wait(tended.wake, delay_s - self._pace.least_s)
        finally:
            collecting.cancel()
            await asyncio.gather(collecting, return_exceptions=True)

    async def _watch(self, backend: Backend) -> None:
        """Has the backend say what moved. Where it cannot, timers still look."""
        outage = Outage("backend", foreseen=(BackendError,), max_backoff_s=self._pace.max_backoff_s)
        await repeat("backend", lambda: backend.run(self.wake), self._pace.moving_s, outage=outage)


def _place(deployment: Deployment) -> tuple[Key, str, pb.DeploymentSpec]:
    """By what a backend finds it."""
    return deployment.key, deployment.resource_name, deployment.spec


def _tallies(seen: progress.Look, now: datetime) -> list[Tally]:
    replicas = seen.observed.replicas if seen.observed else ()
    ready = Counter(replica.revision for replica in replicas if replica.is_ready)
    return [Tally(now, measured, ready[measured.revision]) for measured in seen.measured.values()]


async def _redirect(deployments: Reader, deployment: Deployment) -> Redirect | None:
    """Who takes the traffic after a switch; None also if that deployment is no longer there."""
    if deployment.switched_to is None:
        return None
    other = await deployments.find(deployment.switched_to)
    if other is None or other.deployment.is_gone or not other.deployment.status.endpoint:
        return None
    return Redirect(other.deployment.status.endpoint, deployment.switched_to.model_id)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Returns when the event is set, at the latest after the timeout."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, timeout_s)):
            await event.wait()
