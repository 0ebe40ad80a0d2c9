"""The loop that brings what is there to what is wanted, whoever was restarted in between.

It is level-triggered: every look reads the whole wish from the database and the whole truth from the
backend, and what follows depends on nothing else. A look that dies at any point is simply taken again. What
wakes it, a change in the backend, a write, a timer, only says when, never what.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.control import course, gauges
from neuroweaver.deployer.control.recent import Memory, Recent
from neuroweaver.deployer.domain import desired
from neuroweaver.deployer.domain.backend import Backend, Key, Line, Measured, Observed, Redirect, Wanted
from neuroweaver.deployer.domain.metrics.measurement import Tally
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.deployer.planning import Backends
from neuroweaver.deployer.storage.lease import Lease, LeaseLost
from neuroweaver.deployer.storage.reader import Reader
from neuroweaver.deployer.storage.store import Store
from neuroweaver.deployer.storage.writer import Writer
from neuroweaver.mesh.wire.errors import Error
from neuroweaver.v1 import deployer_pb2 as pb

_LOG: Final = logging.getLogger("neuroweaver.deployer")

T = TypeVar("T")


@dataclass(frozen=True)
class Pace:
    """How often things are done, in seconds.

    settled, moving: between two looks at a deployment that is as it should be, and at one that is not. least:
    between any two, however often it is woken. listed: between two looks for deployments that nobody told of.
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
_FORESEEN: Final = (BackendError, TimeoutError, SQLAlchemyError, Error)
_MAX_LINES: Final = 1000
# How long it is remembered where the log of a replica that is gone was read to.
_CURSORS_KEPT: Final = timedelta(hours=1)
_MAX_LINE_BYTES: Final = 16 * 1024


@dataclass(frozen=True)
class Look:
    """What came of one look. delay_s: until the next one, unless something happens before."""

    delay_s: float
    is_gone: bool = False
    trouble: BackendError | None = None


class Reconciler:
    def __init__(self, store: Store, backends: Backends, *, pace: Pace = PACE) -> None:
        self._store = store
        self._backends = backends
        self._pace = pace
        self._wakes: dict[Key, asyncio.Event] = {}
        self._workers: dict[Key, asyncio.Task[None]] = {}
        self._troubles: dict[Key, int] = {}
        self._measured: dict[Key, datetime] = {}
        self._swept: dict[Key, datetime] = {}
        self._memory = Memory()
        self._told_of = asyncio.Event()
        store.listen(self.wake)

    def wake(self, key: Key) -> None:
        """Has a deployment looked at soon. Callable at any time, also for one that nobody knows yet."""
        event = self._wakes.get(key)
        if event is not None:
            event.set()
        else:
            self._told_of.set()

    async def lead(self, lease: Lease | None = None) -> None:
        """Tends every deployment until cancelled. Raises LeaseLost once the lease is another's."""
        watchers = [
            asyncio.create_task(self._watch(backend)) for backend in dict.fromkeys(self._backends.values())
        ]
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            while True:
                self._told_of.clear()
                await self._employ(lease, failed)
                await _first(failed, self._told_of, self._pace.listed_s)
                if failed.done():
                    failed.result()
        finally:
            tasks = [*watchers, *self._workers.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._workers.clear()
            self._wakes.clear()
            gauges.hide_all()
            self._memory.clear()
            failed.cancel()

    async def look(self, key: Key, lease: Lease | None = None) -> Look:
        """At one deployment: applies its wish, sees what is there, notes what follows."""
        async with self._store.read(key.project) as deployments:
            kept = await deployments.find(key)
            redirect = await _redirect(deployments, kept.deployment) if kept else None
        if kept is None or kept.deployment.is_gone:
            if kept is not None:
                gauges.show(kept.deployment)
            return Look(0.0, is_gone=True)
        deployment = kept.deployment
        wanted = desired.wanted(deployment, redirect)
        observed, is_removed = None, False
        trouble: BackendError | None
        backend = self._backends.get(deployment.spec.backend)
        if backend is None:
            trouble = BackendError(Trouble.NOT_CONFIGURED, "This deployer has no backend of that kind.")
        else:
            is_removed, trouble = await self._carry_out(backend, deployment, wanted)
        measured: Sequence[Measured] = ()
        if backend is not None and not is_removed:
            observed, trouble = await self._observe(backend, deployment, trouble)
            measured = await self._measure(backend, deployment, observed)
        by_revision = {each.revision: each for each in measured}
        found = course.Look(deployment.generation, observed, trouble, by_revision)
        after = await self._note(key, found, lease, is_removed=is_removed)
        if after is None or after.is_gone:
            return Look(0.0, is_gone=True, trouble=trouble)
        return Look(self._delay(key, after, wanted, redirect, trouble), trouble=trouble)

    async def collect(self, key: Key, lease: Lease | None = None) -> bool:
        """Takes in the lines that the replicas wrote since the last time; whether there are more at once.

        What came before an error is kept. Raises BackendError, TimeoutError.
        """
        async with self._store.read(key.project) as deployments:
            kept = await deployments.find(key)
            cursors = await deployments.cursors(key)
        backend = self._backends.get(kept.deployment.spec.backend) if kept else None
        if kept is None or kept.deployment.is_gone or backend is None:
            return False
        deployment = kept.deployment
        lines: list[Line] = []
        reached: dict[str, str] = {}
        stream = backend.logs(key, deployment.resource_name, deployment.spec, cursors)
        failure: BackendError | TimeoutError | None = None
        try:
            async with asyncio.timeout(self._pace.call_s), aclosing(stream) as arriving:  # type: ignore[type-var]
                async for line in arriving:
                    lines.append(_cut(line))
                    reached[line.replica_id] = line.cursor
                    if len(lines) >= _MAX_LINES:
                        break
        except (BackendError, TimeoutError) as error:
            failure = error
        if lines:

            async def add(deployments: Writer) -> None:
                if await deployments.find(key):
                    await deployments.add_lines(key, lines, reached)

            await self._store.transact(key.project, add, lease=lease)
        if failure is not None:
            raise failure
        return len(lines) >= _MAX_LINES

    async def _carry_out(
        self, backend: Backend, deployment: Deployment, wanted: Wanted
    ) -> tuple[bool, BackendError | None]:
        """Whether it was to be removed and nothing is left of it, and what trouble there was."""
        key, name, spec = deployment.key, deployment.resource_name, deployment.spec
        try:
            if deployment.is_being_removed:
                return await self._in_time(backend.remove(key, name, spec)), None
            await self._in_time(backend.apply(wanted))
        except BackendError as error:
            return False, error
        return False, None

    async def _observe(
        self, backend: Backend, deployment: Deployment, trouble: BackendError | None
    ) -> tuple[Observed | None, BackendError | None]:
        try:
            seen = await self._in_time(
                backend.observe(deployment.key, deployment.resource_name, deployment.spec)
            )
        except BackendError as error:
            return None, trouble or error
        return seen, trouble

    async def _measure(
        self, backend: Backend, deployment: Deployment, observed: Observed | None
    ) -> Sequence[Measured]:
        """What replicas counted: at every look in a rollout, else once in a while.

        What cannot be asked is missing, and stays missing.
        """
        if observed is None or not observed.replicas:
            return ()
        if not deployment.is_rolling and not self._is_due(deployment.key):
            return ()
        key = deployment.key
        try:
            return await self._in_time(backend.measure(key, deployment.resource_name, deployment.spec))
        except BackendError as error:
            _LOG.warning("not measured", extra={"model_id": key.model_id, "cause": error.trouble.value})
            return ()

    def _is_due(self, key: Key) -> bool:
        """Whether measurements are to be kept again."""
        last = self._measured.get(key)
        return last is None or self._store.clock() - last >= timedelta(seconds=self._pace.measured_s)

    async def _note(
        self, key: Key, found: course.Look, lease: Lease | None, *, is_removed: bool
    ) -> Deployment | None:
        """What follows, decided on the wish as it is by now. None if there is nothing left to decide on."""
        is_kept = bool(found.measured) and self._is_due(key)
        swept = self._swept.get(key)
        is_swept = found.observed is not None and (
            swept is None or self._store.clock() - swept >= _CURSORS_KEPT
        )
        recent: Recent | None = None

        async def note(deployments: Writer) -> Deployment | None:
            nonlocal recent
            recent = None
            before = await deployments.find(key)
            if before is None or before.deployment.is_gone:
                return None
            current = before.deployment
            if is_removed and current.is_being_removed:
                await deployments.forget_logs(key)
                return (await deployments.save(before, current.gone(), course.BY_ITSELF)).deployment
            if is_swept and found.observed is not None:
                there = [each.replica_id for each in found.observed.replicas]
                await deployments.forget_cursors(key, there, deployments.now - _CURSORS_KEPT)
            if is_kept:
                await deployments.add_tallies(key, _tallies(found, deployments.now))
            recent = await self._memory.caught_up(deployments, current, deployments.now)
            known = await course.gather(deployments, current, found, recent, deployments.now)
            after, why = course.advanced(current, found, known, deployments.now)
            return (await deployments.save(before, after, why)).deployment

        after = await self._store.transact(key.project, note, lease=lease)
        if recent is not None:
            self._memory.keep(key, recent)
        if after is not None:
            gauges.show(after)
        if is_kept:
            self._measured[key] = self._store.clock()
        if is_swept:
            self._swept[key] = self._store.clock()
        return after

    def _delay(
        self,
        key: Key,
        after: Deployment,
        wanted: Wanted,
        redirect: Redirect | None,
        trouble: BackendError | None,
    ) -> float:
        pace = self._pace
        if trouble is not None:
            self._troubles[key] = self._troubles.get(key, 0) + 1
            backoff_s = min(pace.moving_s * 2.0 ** (self._troubles[key] - 1), pace.max_backoff_s)
            return max(backoff_s, trouble.retry_after_s or 0.0)
        self._troubles.pop(key, None)
        if not after.is_being_removed and desired.wanted(after, redirect) != wanted:
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

    async def _employ(self, lease: Lease | None, failed: asyncio.Future[None]) -> None:
        """One worker for each deployment that has none."""
        try:
            deployments = await self._store.everything()
        except (SQLAlchemyError, Error) as error:  # the database may be back in a second
            _LOG.warning("deployments not listed", extra={"cause": type(error).__name__})
            return
        for key in [key for key, worker in self._workers.items() if worker.done()]:
            del self._workers[key]
            self._wakes.pop(key, None)
            self._troubles.pop(key, None)
            self._measured.pop(key, None)
            self._swept.pop(key, None)
        for deployment in deployments:
            key = deployment.key
            if key not in self._workers:
                self._wakes[key] = asyncio.Event()
                self._workers[key] = asyncio.create_task(self._tend(key, lease, failed))

    async def _tend(self, key: Key, lease: Lease | None, failed: asyncio.Future[None]) -> None:
        """One deployment, until it is gone."""
        collecting = asyncio.create_task(self._collect(key, lease))
        try:
            while True:
                self._wakes[key].clear()
                delay_s = await self._looked(key, lease)
                if delay_s is None:
                    return
                await asyncio.sleep(self._pace.least_s)
                await _first(None, self._wakes[key], delay_s - self._pace.least_s)
        except LeaseLost as error:
            if not failed.done():
                failed.set_exception(error)
        finally:
            collecting.cancel()
            await asyncio.gather(collecting, return_exceptions=True)

    async def _looked(self, key: Key, lease: Lease | None) -> float | None:
        """Seconds until the next look; None if there is nothing to look at any more."""
        try:
            look = await self.look(key, lease)
        except (SQLAlchemyError, Error) as error:  # the database may be back in a second
            _LOG.warning("not looked at", extra={"model_id": key.model_id, "cause": type(error).__name__})
            return self._pace.moving_s
        except LeaseLost:
            raise
        except Exception:  # noqa: BLE001  # one deployment's fault must not hold up all others
            _LOG.exception("not looked at", extra={"model_id": key.model_id, "deployment": key.name})
            return self._pace.max_backoff_s
        return None if look.is_gone else look.delay_s

    async def _collect(self, key: Key, lease: Lease | None) -> None:
        """Again and again. What stands against it is told once, until it is over or something else does."""
        told = ""
        while True:
            has_more, failure = False, None
            try:
                has_more = await self.collect(key, lease)
            except LeaseLost:
                return
            except Exception as error:  # noqa: BLE001  # likewise
                failure = error
            cause = _cause(failure)
            if failure is not None and cause != told:
                where = {"model_id": key.model_id, "deployment": key.name}
                _LOG.warning(
                    "logs not read",
                    extra={**where, "cause": cause, "told": str(failure)},
                    exc_info=None if isinstance(failure, _FORESEEN) else failure,
                )
            told = cause
            if not has_more:
                await asyncio.sleep(self._pace.logged_s)

    async def _watch(self, backend: Backend) -> None:
        """Has the backend say what moved. Where it cannot, timers still look."""
        delay_s = self._pace.moving_s
        while True:
            try:
                await backend.run(self.wake)
            except BackendError as error:
                # A backend that is not set up here is missed by nobody until a deployment names it.
                level = logging.DEBUG if error.trouble == Trouble.NOT_CONFIGURED else logging.WARNING
                _LOG.log(level, "backend not watched", extra={"cause": error.trouble.value})
            except Exception:  # noqa: BLE001  # without it, timers still look
                _LOG.exception("backend not watched")
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, self._pace.max_backoff_s)


def _cause(failure: Exception | None) -> str:
    """In a word; empty for none."""
    if isinstance(failure, BackendError):
        return failure.trouble.value
    return "" if failure is None else type(failure).__name__


def _tallies(found: course.Look, now: datetime) -> list[Tally]:
    replicas = found.observed.replicas if found.observed else ()
    there = Counter(each.revision for each in replicas if each.phase == pb.REPLICA_PHASE_READY)
    return [Tally(now, each, there[each.revision]) for each in found.measured.values()]


async def _redirect(deployments: Reader, deployment: Deployment) -> Redirect | None:
    """Who takes the traffic after a switch; None also if that deployment is no longer there."""
    if deployment.switched_to is None:
        return None
    other = await deployments.find(deployment.switched_to)
    if other is None or other.deployment.is_gone or not other.deployment.status.endpoint:
        return None
    return Redirect(other.deployment.status.endpoint, deployment.switched_to.model_id)


async def _first(failed: asyncio.Future[None] | None, event: asyncio.Event, timeout_s: float) -> None:
    """Returns when the event is set, when something failed, or when the time is over."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        awaited: set[asyncio.Future[object]] = {waiting}  # type: ignore[arg-type]
        if failed is not None:
            awaited.add(failed)  # type: ignore[arg-type]
        await asyncio.wait(awaited, timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


def _cut(line: Line) -> Line:
    """A line of at most 16 KiB."""
    encoded = line.message.replace("\0", "�").encode()
    if len(encoded) <= _MAX_LINE_BYTES:
        return line if "\0" not in line.message else _with(line, line.message.replace("\0", "�"))
    return _with(line, encoded[: _MAX_LINE_BYTES - 3].decode(errors="ignore") + "…")


def _with(line: Line, message: str) -> Line:
    return Line(line.replica_id, line.revision, line.time, message, line.level, line.cursor)
