"""How well a model does: what was measured, whether it is fit, and who serves instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from neuroweaver.deployer.control import health as healths
from neuroweaver.deployer.control.recent import Memory
from neuroweaver.deployer.domain import messages, switching
from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.domain.metrics.counts import MEASURES, Sample
from neuroweaver.deployer.domain.model import Deployment, require_current
from neuroweaver.deployer.planning import Planner
from neuroweaver.deployer.rpc.keys import existing_key
from neuroweaver.deployer.storage.store import Store
from neuroweaver.deployer.storage.writer import Writer
from neuroweaver.mesh.handlers.mutations import Mutations
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.mesh.wire.text import check_text
from neuroweaver.v1 import deployer_pb2 as pb

DEFAULT_WINDOW: Final = timedelta(minutes=5)
MAX_AHEAD: Final = timedelta(minutes=5)


async def report(deployments: Writer, key: Key, request: pb.ReportPerformanceRequest) -> Deployment:
    before = await deployments.kept(key)
    samples = list(_samples(request, deployments.now))
    await deployments.add_samples(key, request.source, samples)
    return before.deployment


async def set_thresholds(
    deployments: Writer, key: Key, request: pb.SetThresholdsRequest, planner: Planner
) -> Deployment:
    before = await deployments.kept(key)
    require_current(before.deployment, request.etag)
    after = planner.rescaled(
        before.deployment,
        lambda spec: spec.thresholds.CopyFrom(request.thresholds),
        actor=deployments.actor,
        now=deployments.now,
    )
    await deployments.save(before, after)
    return after


async def switch(deployments: Writer, key: Key, request: pb.SwitchModelRequest) -> pb.ModelHealth:
    before = await deployments.kept(key)
    current = before.deployment
    require_current(current, request.etag)
    named = request.target if request.HasField("target") else None
    target = switching.target_of(current, named)
    if target != (current.switched_to or key):
        kept = await deployments.find(target)
        switching.require_ready(target, kept.deployment if kept else None, source=key)
    after = current.switched(target)
    await deployments.save(before, after)
    return messages.from_health(after, deployments.now)


class Performance:
    def __init__(self, store: Store, mutations: Mutations[Writer], planner: Planner) -> None:
        self._store = store
        self._mutations = mutations
        self._planner = planner
        self._memory = Memory()

    async def GetDeploymentMetrics(
        self, request: pb.GetDeploymentMetricsRequest, context: Any
    ) -> pb.DeploymentMetrics:
        key = existing_key(request, context)
        length = request.window.ToTimedelta() if request.HasField("window") else DEFAULT_WINDOW
        now = self._store.clock()
        async with self._store.read(key.project) as deployments:
            deployment = await deployments.deployment(key)
            tallies = await deployments.tallies_after(key, now - length)
            samples = await deployments.samples(key, now - length)
        return messages.from_metrics(deployment, tallies, samples, now - length, now)

    async def ReportPerformance(self, request: pb.ReportPerformanceRequest, context: Any) -> pb.ModelHealth:
        key = existing_key(request, context)
        check_text("source", request.source)
        return await self._judged(
            key, request, context, lambda deployments: report(deployments, key, request)
        )

    async def GetModelHealth(self, request: pb.GetModelHealthRequest, context: Any) -> pb.ModelHealth:
        key = existing_key(request, context)
        async with self._store.read(key.project) as deployments:
            return messages.from_health(await deployments.deployment(key), self._store.clock())

    async def SetThresholds(self, request: pb.SetThresholdsRequest, context: Any) -> pb.ModelHealth:
        key = existing_key(request, context)
        return await self._judged(
            key,
            request,
            context,
            lambda deployments: set_thresholds(deployments, key, request, self._planner),
        )

    async def SwitchModel(self, request: pb.SwitchModelRequest, context: Any) -> pb.ModelHealth:
        key = existing_key(request, context)
        return await self._mutations.run(
            request, context, lambda deployments: switch(deployments, key, request)
        )

    async def _judged(
        self, key: Key, request: Any, context: Any, operation: Callable[[Writer], Awaitable[Deployment]]
    ) -> pb.ModelHealth:
        """The health of the deployment that a change gives, by all that is measured by then."""
        # Before the transaction: what is seen within may be rolled back, and a retry runs nothing.
        async with self._store.read(key.project) as deployments:
            kept = await deployments.find(key)
            if kept is not None:
                now = self._store.clock()
                self._memory.keep(key, await self._memory.caught_up(deployments, kept.deployment, now))

        async def judge(deployments: Writer) -> pb.ModelHealth:
            deployment, now = await operation(deployments), deployments.now
            recent = await self._memory.caught_up(deployments, deployment, now)
            health, _ = healths.judged(deployment, deployment.status.replicas, recent, now)
            return messages.from_health(deployment.with_health(health), now)

        return await self._mutations.run(request, context, judge)


def _samples(request: pb.ReportPerformanceRequest, now: datetime) -> Iterable[Sample]:
    """Raises InvalidArgument for one from the future."""
    covers_deployment = request.covers_deployment
    for index, sample in enumerate(request.samples):
        time = sample.time.ToDatetime(now.tzinfo) if sample.HasField("time") else now
        if time > now + MAX_AHEAD:
            raise InvalidArgument(
                f"samples[{index}].time",
                "is more than 5 minutes in the future; check the clock of the sender",
            )
        given = {field.name: value for field, value in sample.ListFields()}
        measured = {name: given.get(name) for name in MEASURES}
        yield Sample(
            time,
            sample.version,
            given.get("requests", 1),
            **measured,
            covers_deployment=covers_deployment,
        )
