"""Follows aliases: when one moves, every deployment that follows it rolls out the version that it names then.

The Registry is polled, and its answer compared with the version last acted on, so a move that was missed is
found at the next look. A watch of the Registry only says when to ask at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import grpc

from neuroweaver.deployer.domain import specification
from neuroweaver.deployer.domain.backend import Bundle, Key
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.deployer.planning import Planner
from neuroweaver.deployer.storage.lease import Lease, LeaseLost
from neuroweaver.deployer.storage.store import Store
from neuroweaver.deployer.storage.writer import Writer, by_itself
from neuroweaver.mesh.handlers.loop import Outages, repeat
from neuroweaver.mesh.handlers.signals import Signal
from neuroweaver.mesh.wire import status as statuses
from neuroweaver.mesh.wire.errors import Error, FailedPrecondition, NotFound, Unavailable
from neuroweaver.v1 import registry_pb2, registry_pb2_grpc

PERIOD_S: Final = 5.0
RECONNECT_S: Final = 2.0
MAX_BACKOFF_S: Final = 60.0
# A plan reads files of up to half a gigabyte.
PLAN_S: Final = 120.0
_BATCH_S: Final = 0.05
_MOST_AT_ONCE: Final = 8
_RESOLVED: Final = "RESOLVED"


@dataclass(frozen=True)
class Refusal:
    """A version that could not be rolled out by the spec of a generation: how often in a row, and the time at
    which it is tried again.
    """

    version: str
    generation: int
    times: int
    retry_at: float

    def is_of(self, deployment: Deployment, bundle: Bundle) -> bool:
        return (self.version, self.generation) == (bundle.version, deployment.generation)


class Follower:
    def __init__(
        self,
        store: Store,
        planner: Planner,
        registry: registry_pb2_grpc.RegistryServiceAsyncStub,
        *,
        period_s: float = PERIOD_S,
        plan_s: float = PLAN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._planner = planner
        self._registry = registry
        self._period_s = period_s
        self._plan_s = plan_s
        self._clock = clock
        self._refusals: dict[Key, Refusal] = {}
        self._outages = Outages("aliases")
        self._moved = Signal()
        self._sequence = 0

    async def run(self, lease: Lease | None = None) -> None:
        """Until cancelled. Raises LeaseLost once the lease is another's."""

        async def turn() -> None:
            await asyncio.sleep(_BATCH_S)
            await self.look(lease)

        watching = asyncio.create_task(repeat("registry watch", self._watch, RECONNECT_S))
        try:
            await repeat("aliases", turn, self._period_s, wake=self._moved, passing=(LeaseLost,))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def look(self, lease: Lease | None = None) -> None:
        """At every deployment that follows an alias."""
        following = [deployment for deployment in await self._store.everything() if _follows(deployment)]
        keys = {deployment.key for deployment in following}
        self._refusals = {key: refusal for key, refusal in self._refusals.items() if key in keys}
        places = asyncio.Semaphore(_MOST_AT_ONCE)
        looks = [self._looked_at(deployment, lease, places) for deployment in following]
        for failure in await asyncio.gather(*looks, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _looked_at(
        self, deployment: Deployment, lease: Lease | None, places: asyncio.Semaphore
    ) -> None:
        """Raises LeaseLost."""
        async with places:
            with self._outages.survived(LeaseLost, deployment=str(deployment.key)):
                await self._look_at(deployment, lease)

    async def _look_at(self, deployment: Deployment, lease: Lease | None) -> None:
        key, alias = deployment.key, deployment.alias
        try:
            bundle = await self._planner.versions.selected(key.model_id, f"@{alias}")
        except NotFound:
            await self._say(deployment, lease, "ALIAS_MISSING", f"Alias {alias} no longer exists.")
        except FailedPrecondition as error:
            await self._say(deployment, lease, error.reason, error.description)
        else:
            if bundle.version == deployment.followed:
                await self._say(deployment, lease, *_resolved(alias, bundle))
            elif not self._must_wait(deployment, bundle):
                await self._roll_out(deployment, bundle, lease)

    async def _roll_out(self, deployment: Deployment, bundle: Bundle, lease: Lease | None) -> None:
        """What the alias names now. Where that cannot be, what serves stays, and it is tried again."""
        key, alias = deployment.key, deployment.alias

        def followed(current: Deployment, now: datetime) -> Deployment:
            spec = specification.completed(current.asked, key, bundle, self._planner.defaults)
            return current.followed_to(bundle, spec, now=now)

        try:
            async with asyncio.timeout(self._plan_s):
                draft = await self._planner.planned(followed(deployment, self._store.clock()))
            draft.require_feasible()
        except (Unavailable, TimeoutError):
            self._refuse(deployment, bundle)
            raise
        except Error as error:
            self._refuse(deployment, bundle)
            text = f"{alias} names {bundle.version}, which cannot be rolled out: {error.description}"
            await self._say(deployment, lease, error.reason, text)
            return

        def follow(current: Deployment, now: datetime) -> Deployment:
            if current.followed == bundle.version:
                return current
            after = followed(current, now)
            if after.target != current.target:
                after = replace(after, replacement=draft.plan.replacement)
            return _with_condition(after, *_resolved(alias, bundle), now)

        await self._change(deployment, follow, lease)
        self._refusals.pop(key, None)

    async def _change(
        self,
        deployment: Deployment,
        change: Callable[[Deployment, datetime], Deployment],
        lease: Lease | None,
    ) -> None:
        """Of a deployment that still follows the alias that it followed."""

        async def work(deployments: Writer) -> None:
            before = await deployments.find(deployment.key)
            if before is None or not _follows(before.deployment):
                return
            if before.deployment.alias == deployment.alias:
                await deployments.save(before, change(before.deployment, deployments.now))

        await self._store.transact(by_itself(deployment.key), work, lease=lease)

    def _must_wait(self, deployment: Deployment, bundle: Bundle) -> bool:
        """Whether the same was refused just now. Another version, or another spec, is tried at once."""
        refusal = self._refusals.get(deployment.key)
        return refusal is not None and refusal.is_of(deployment, bundle) and self._clock() < refusal.retry_at

    def _refuse(self, deployment: Deployment, bundle: Bundle) -> None:
        refusal = self._refusals.get(deployment.key)
        times = refusal.times + 1 if refusal is not None and refusal.is_of(deployment, bundle) else 1
        delay_s = min(self._period_s * 2.0 ** min(times, 10), MAX_BACKOFF_S)
        retry_at = self._clock() + delay_s
        self._refusals[deployment.key] = Refusal(bundle.version, deployment.generation, times, retry_at)

    async def _say(self, deployment: Deployment, lease: Lease | None, reason: str, message: str) -> None:
        """Notes whether the alias leads to something, where that is news."""
        async with self._store.read(deployment.key.project) as deployments:
            kept = await deployments.find(deployment.key)
        condition = kept.deployment.status.condition("ALIAS_RESOLVED") if kept else None
        if condition is None or (condition.reason, condition.message) != (reason, message):
            await self._change(
                deployment, lambda current, now: _with_condition(current, reason, message, now), lease
            )

    async def _watch(self) -> None:
        """Has the Registry say when an alias moves. Where it cannot, the timer still asks."""
        request = registry_pb2.WatchModelsRequest(since_sequence=self._sequence)
        try:
            async for event in self._registry.WatchModels(request):
                self._sequence = event.sequence
                if event.WhichOneof("subject") == "alias":
                    self._moved.notify()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.OUT_OF_RANGE:
                raise
            self._sequence = _before_oldest(error)


def _follows(deployment: Deployment) -> bool:
    return bool(deployment.alias) and not deployment.is_being_removed and not deployment.is_gone


def _resolved(alias: str, bundle: Bundle) -> tuple[str, str]:
    return _RESOLVED, f"{alias} names {bundle.version}."


def _with_condition(deployment: Deployment, reason: str, message: str, now: datetime) -> Deployment:
    status = deployment.status.with_condition(
        "ALIAS_RESOLVED", is_true=reason == _RESOLVED, reason=reason, message=message, now=now
    )
    return replace(deployment, status=status)


def _before_oldest(error: grpc.RpcError) -> int:
    """Where a watch can be resumed after events were dropped; 0 if the error does not say."""
    oldest = statuses.metadata(error).get("oldest_sequence", "")
    return int(oldest) - 1 if oldest.isdecimal() and int(oldest) > 0 else 0
