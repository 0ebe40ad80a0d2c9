"""The RPCs about how well a model does: what was measured, whether it is fit, and who serves instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from neuroweaver.deployer.control.vitals import vitals
from neuroweaver.deployer.domain import messages, specification
from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.domain.metrics import measurement
from neuroweaver.deployer.domain.metrics.measurement import Sample
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.deployer.domain.specification import DEFAULT_NAME
from neuroweaver.deployer.rpc.handler import Handler, known_key, occasion
from neuroweaver.deployer.storage.reader import Reader
from neuroweaver.deployer.storage.writer import Writer
from neuroweaver.mesh.auth.caller import caller_of
from neuroweaver.mesh.wire.clock import timestamp
from neuroweaver.mesh.wire.errors import FailedPrecondition, InvalidArgument, NotFound
from neuroweaver.mesh.wire.text import check_text
from neuroweaver.v1 import deployer_pb2 as pb

DEFAULT_WINDOW: Final = timedelta(minutes=5)
MAX_AHEAD: Final = timedelta(minutes=5)

_VALUES: Final = (
    "accuracy",
    "latency_ms",
    "throughput_rps",
    "error_rate",
    "cost_per_request",
    "judged_quality",
)


class PerformanceMethods(Handler):
    async def GetDeploymentMetrics(
        self, request: pb.GetDeploymentMetricsRequest, context: Any
    ) -> pb.DeploymentMetrics:
        key = known_key(request, context)
        window = request.window.ToTimedelta() if request.HasField("window") else DEFAULT_WINDOW
        now = self._store.clock()
        async with self._store.read(key.project) as deployments:
            deployment = await deployments.deployment(key)
            tallies = await deployments.tallies(key, now - window)
            samples = await deployments.samples(key, now - window)
        versions = {each.number: each.bundle.version for each in deployment.revisions}
        found = measurement.windows(tallies, samples, versions=versions, stable=deployment.stable)
        whole = measurement.total(found.values())
        engine = deployment.spec.engine
        price = engine.replica_hour_usd if engine.HasField("replica_hour_usd") else None
        return pb.DeploymentMetrics(
            start_time=timestamp(now - window),
            end_time=timestamp(now),
            total=measurement.message(whole, price),
            revisions=[
                pb.RevisionMetrics(
                    revision=number,
                    version=versions.get(number, ""),
                    metrics=measurement.message(found[number], price),
                )
                for number in sorted(found, reverse=True)
            ],
            missing_replicas=whole.missing_replicas,
        )

    async def ReportPerformance(self, request: pb.ReportPerformanceRequest, context: Any) -> pb.ModelHealth:
        key = known_key(request, context)
        check_text("source", request.source)
        actor = caller_of(context).actor

        async def report(deployments: Writer) -> Deployment:
            before = await deployments.kept(key)
            samples = list(_samples(request.samples, deployments.now))
            await deployments.add_samples(key, request.source, actor, samples)
            return before.deployment

        return await self._judged("ReportPerformance", request, context, report)

    async def GetModelHealth(self, request: pb.GetModelHealthRequest, context: Any) -> pb.ModelHealth:
        key = known_key(request, context)
        async with self._store.read(key.project) as deployments:
            return messages.from_health(await deployments.deployment(key), self._store.clock())

    async def SetThresholds(self, request: pb.SetThresholdsRequest, context: Any) -> pb.ModelHealth:
        key, why = known_key(request, context), occasion(request, context)

        def limited(spec: pb.DeploymentSpec) -> None:
            spec.thresholds.CopyFrom(request.thresholds)

        async def limit(deployments: Writer) -> Deployment:
            before = await deployments.kept(key)
            current = before.deployment
            current.require_present()
            current.require(request.etag)
            asked, spec = self._changed(current, limited)
            after = current.rescaled(asked, spec, actor=why.actor, now=deployments.now)
            await deployments.save(before, after, why)
            return after

        return await self._judged("SetThresholds", request, context, limit)

    async def SwitchModel(self, request: pb.SwitchModelRequest, context: Any) -> pb.ModelHealth:
        key, why = known_key(request, context), occasion(request, context)

        async def switch(deployments: Writer) -> pb.ModelHealth:
            before = await deployments.kept(key)
            current = before.deployment
            current.require_present()
            current.require(request.etag)
            target = _target(request, current)
            _require_same_name(current, target)
            if target != (current.switched_to or key):
                await _require_ready(deployments, target, key)
            after = current.switched(target)
            await deployments.save(before, after, why)
            return messages.from_health(after, deployments.now)

        return await self._mutate("SwitchModel", request, context, pb.ModelHealth, switch)

    async def _judged(
        self,
        method: str,
        request: Any,
        context: Any,
        operation: Callable[[Writer], Awaitable[Deployment]],
    ) -> pb.ModelHealth:
        """The health of the deployment that a change gives, as it follows from all that is known by then."""
        key = known_key(request, context)
        # Before the transaction: what is seen within may be rolled back, and a retry runs nothing.
        async with self._store.read(key.project) as deployments:
            kept = await deployments.find(key)
            if kept is not None:
                now = self._store.clock()
                self._memory.keep(key, await self._memory.caught_up(deployments, kept.deployment, now))

        async def judge(deployments: Writer) -> pb.ModelHealth:
            deployment, now = await operation(deployments), deployments.now
            recent = await self._memory.caught_up(deployments, deployment, now)
            found = vitals(deployment, deployment.status.replicas, recent, now)
            status = replace(deployment.status, health=found.health)
            return messages.from_health(replace(deployment, status=status), now)

        return await self._mutate(method, request, context, pb.ModelHealth, judge)


def _samples(samples: Iterable[pb.PerformanceSample], now: datetime) -> Iterable[Sample]:
    """Raises InvalidArgument for one from the future."""
    for index, sample in enumerate(samples):
        time = sample.time.ToDatetime(now.tzinfo) if sample.HasField("time") else now
        if time > now + MAX_AHEAD:
            raise InvalidArgument(f"samples[{index}].time", "lies more than 5 minutes in the future")
        values = {name: getattr(sample, name) if sample.HasField(name) else None for name in _VALUES}
        requests = sample.requests if sample.HasField("requests") else 1
        yield Sample(time, sample.version, requests, **values)


def _target(request: pb.SwitchModelRequest, deployment: Deployment) -> Key:
    """Who shall get the traffic. Raises FailedPrecondition."""
    if request.HasField("target"):
        target = request.target
        return Key(deployment.key.project, target.model_id, target.name or DEFAULT_NAME)
    backup = specification.backup_of(deployment.spec, deployment.key.project)
    if backup is None:
        raise FailedPrecondition("NO_BACKUP", "the deployment has no backup model: name a target")
    return backup


def _require_same_name(deployment: Deployment, target: Key) -> None:
    """Raises FailedPrecondition for a target that would know none of the requests: in a cluster nothing but a
    router rewrites their bodies, which name the model.
    """
    spec = deployment.spec
    is_in_cluster = spec.backend == pb.DEPLOYMENT_BACKEND_KUBERNETES
    is_rewriting = not is_in_cluster or specification.has_router(spec, deployment.key)
    if not is_rewriting and target.model_id != deployment.key.model_id:
        raise FailedPrecondition(
            "TARGET_OF_ANOTHER_MODEL",
            "behind a Service the traffic goes to another deployment of the same model alone: set "
            "spec.kubernetes.traffic_routing to TRAFFIC_ROUTING_ROUTER",
        )


async def _require_ready(deployments: Reader, target: Key, key: Key) -> None:
    """Raises FailedPrecondition for a target that could not answer, or that sends its traffic on."""
    try:
        found = await deployments.deployment(target)
    except NotFound as error:
        raise FailedPrecondition(
            "TARGET_NOT_READY", f"{target.model_id}/{target.name} is not deployed"
        ) from error
    if not found.status.ready() or found.is_being_removed:
        raise FailedPrecondition(
            "TARGET_NOT_READY", f"{target.model_id}/{target.name} has no ready replica; nothing was moved"
        )
    if target != key and found.switched_to is not None:
        raise FailedPrecondition(
            "TARGET_SWITCHED", f"{target.model_id}/{target.name} sends its own traffic elsewhere"
        )
