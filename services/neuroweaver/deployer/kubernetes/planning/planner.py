"""What `apply` would do, found out by dry runs, and what stands in its way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Final

import yaml

from neuroweaver.base_models.catalog import BUILTIN
from neuroweaver.cluster.api import Api
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.cluster.failures import Refusal, to_backend_error
from neuroweaver.cluster.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    HTTP_ROUTE,
    NAMESPACE,
    NODE,
    POD,
    POD_METRICS,
    PROMETHEUS_RULE,
    ROLE,
    ROLE_BINDING,
    SCALED_OBJECT,
    SERVICE_MONITOR,
    Object,
    Ref,
    kind_of,
    ref,
)
from neuroweaver.deployer.domain.backend import BackendPlan, DesiredState, FieldChange, Finding, Planned
from neuroweaver.deployer.kubernetes import applying
from neuroweaver.deployer.kubernetes.manifests import pods, router_pods, scaling, traffic
from neuroweaver.deployer.kubernetes.manifests.manifests import Cluster, manifests, obstacle_to_zero
from neuroweaver.deployer.kubernetes.manifests.scope import Scope, namespace_of
from neuroweaver.deployer.kubernetes.observing import drift
from neuroweaver.deployer.kubernetes.planning import access
from neuroweaver.deployer.kubernetes.planning.replacement import Room, decide
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.v1 import deployer_pb2 as pb

_AT_ONCE: Final = 8
_DEFAULT_QUEUE: Final = 256
_DEFAULT_BACKOFF: Final = timedelta(seconds=1)
_DEFAULT_LONGEST_BACKOFF: Final = timedelta(minutes=5)


async def plan(
    api: Api,
    settings: ClusterSettings,
    cluster: Cluster,
    wanted: DesiredState,
    live: Mapping[Ref, Object],
    own_pods: Iterable[Object],
) -> BackendPlan:
    """live, own_pods: what is there already of the deployment. Raises Refusal and BackendError."""
    namespace = namespace_of(wanted.spec, settings)
    await access.check(api, namespace, cluster.kinds)
    findings = list(_findings(wanted, settings, cluster))
    findings += await access.lacking(api, namespace)
    has_namespace = await _has_namespace(api, namespace)
    if not has_namespace:
        message = f"namespace {namespace} does not exist in the cluster: create it, or name another one"
        findings.append(Finding("NAMESPACE_MISSING", message, "spec.kubernetes.namespace", is_blocking=True))
    try:
        objects = manifests(wanted, *_as_if_possible(wanted, settings, cluster))
    except BackendError as error:
        if error.trouble != Trouble.REFUSED:
            raise
        findings.append(Finding("REFUSED", str(error), error.field, is_blocking=True))
        objects = []
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(desired: Object) -> Planned | Finding:
        async with limit:
            is_known = not kind_of(desired).is_custom or kind_of(desired) in cluster.kinds
            can_try = has_namespace and is_known and _has_its_role(desired, live)
            return await _planned(api, desired, live.get(ref(desired)), can_try=can_try)

    outcomes = await asyncio.gather(*map(one, objects))
    findings += [outcome for outcome in outcomes if isinstance(outcome, Finding)]
    planned = [outcome for outcome in outcomes if isinstance(outcome, Planned)]
    planned += _deletions(objects, live, wanted.resource_name)
    deployments = [
        each for each in objects if each["kind"] == DEPLOYMENT.name and not router_pods.is_router(each)
    ]
    decision = decide(
        wanted,
        own_pods,
        deployments[-1]["spec"]["template"]["spec"] if deployments else None,
        await _room(api),
        nodes_may_come=settings.has_cluster_autoscaler,
        changes_pods=any(
            change.path.startswith("spec.template.")
            for each in planned
            if each.kind == DEPLOYMENT.name
            and each.action == pb.PLANNED_ACTION_UPDATE
            and each.name != router_pods.named(wanted.resource_name)
            for change in each.changes
        ),
    )
    findings += decision.findings
    findings += await _findings_of_metrics(api, wanted)
    return BackendPlan(
        objects=tuple(planned),
        findings=tuple(sorted(findings, key=lambda finding: not finding.is_blocking)),
        capacity=decision.capacity,
        replacement=decision.mode,
        replacement_reason=decision.reason,
        has_downtime=decision.has_downtime,
    )


async def _planned(api: Api, desired: Object, live: Object | None, *, can_try: bool) -> Planned | Finding:
    kind = kind_of(desired)
    action: pb.PlannedAction.ValueType = pb.PLANNED_ACTION_CREATE
    changes: tuple[FieldChange, ...] = ()
    if not can_try and live is not None:
        is_there = drift.holds(desired, live)
        action = pb.PLANNED_ACTION_UNCHANGED if is_there else pb.PLANNED_ACTION_UPDATE
    if can_try:
        try:
            changes = await applying.changes_of(api, desired, live)
            if live is not None:
                action = pb.PLANNED_ACTION_UPDATE if changes else pb.PLANNED_ACTION_UNCHANGED
        except Refusal as error:
            trouble = to_backend_error(error)
            if trouble.trouble not in {Trouble.REFUSED, Trouble.NO_ROOM, Trouble.CONFLICT}:
                raise trouble from error
            return Finding("REFUSED", str(error), trouble.field, is_blocking=True)
    return Planned(
        api_version=kind.api_version,
        kind=kind.name,
        namespace=desired["metadata"]["namespace"],
        name=desired["metadata"]["name"],
        action=action,
        manifest=yaml.safe_dump(desired, sort_keys=False, allow_unicode=True),
        changes=changes,
    )


def _has_its_role(desired: Object, live: Mapping[Ref, Object]) -> bool:
    """Unless its client may bind anything, the API server looks into the Role of a RoleBinding even in a dry
    run, and answers 404 as long as there is none.
    """
    return kind_of(desired) != ROLE_BINDING or Ref(ROLE.name, desired["roleRef"]["name"]) in live


def _deletions(objects: list[Object], live: Mapping[Ref, Object], resource_name: str) -> Iterator[Planned]:
    # The record stands by itself: it is no part of what was asked for.
    kept = {*map(ref, objects), Ref(CONFIG_MAP.name, resource_name)}
    for each in sorted(live.keys() - kept):
        found, action = live[each], pb.PLANNED_ACTION_DELETE
        namespace = found["metadata"]["namespace"]
        yield Planned(found["apiVersion"], each.kind, namespace, each.name, action, "")


def _as_if_possible(
    wanted: DesiredState, settings: ClusterSettings, cluster: Cluster
) -> tuple[ClusterSettings, Cluster]:
    """So that the objects can be shown of what a finding says is not possible here."""
    if not obstacle_to_zero(wanted, settings, cluster):
        return settings, cluster
    able = replace(
        settings,
        prometheus_url=settings.prometheus_url or "http://prometheus.invalid",
        activation_query=settings.activation_query or "vector(0)",
    )
    return able, replace(cluster, kinds=cluster.kinds | {SCALED_OBJECT})


def _findings(wanted: DesiredState, settings: ClusterSettings, cluster: Cluster) -> Iterator[Finding]:
    spec = wanted.spec
    if any(scaling.scales_to_zero(revision) for revision in wanted.revisions) and (
        obstacle := obstacle_to_zero(wanted, settings, cluster)
    ):
        yield Finding("CANNOT_SCALE_TO_ZERO", obstacle, "spec.autoscaling.min_replicas", is_blocking=True)
    yield from _findings_of_base(wanted, settings)
    has_router = router_pods.is_wanted(wanted)
    is_other = spec.recovery.HasField("backup") and spec.recovery.backup.model_id != wanted.key.model_id
    if is_other and not has_router:
        yield Finding(
            "BACKUP_OF_ANOTHER_MODEL",
            f"requests name their model, {wanted.key.model_id}, in their body, and a Service cannot rewrite "
            f"it, so {spec.recovery.backup.model_id} would answer each with 404: set "
            "spec.kubernetes.traffic_routing to TRAFFIC_ROUTING_ROUTER, or name another deployment of this "
            "model",
            "spec.recovery.backup.model_id",
            is_blocking=True,
        )
    has_route = bool(settings.gateway) and HTTP_ROUTE in cluster.kinds
    if settings.gateway and not has_route:
        yield Finding(
            "GATEWAY_MISSING",
            "the cluster has no Gateway API (HTTPRoute), so the deployment cannot be reached from outside",
        )
    if spec.rollout.HasField("canary") and not has_router:
        yield from _findings_of_canary(wanted, has_route=has_route)
    if Scope(wanted, settings).is_monitored and not ({SERVICE_MONITOR, PROMETHEUS_RULE} <= cluster.kinds):
        yield Finding(
            "MONITORING_MISSING",
            "the Prometheus operator (ServiceMonitor, PrometheusRule) is not installed: no metrics are "
            "scraped, and no alerts are raised",
            "spec.kubernetes.monitoring",
        )
    if (
        pods.uses_vllm(spec)
        and spec.engine.HasField("max_queue_size")
        and spec.engine.max_queue_size != _DEFAULT_QUEUE
    ):
        yield Finding(
            "QUEUE_NOT_BOUNDED",
            "vLLM's queue has no limit, so this setting has no effect",
            "spec.engine.max_queue_size",
        )
    yield from _findings_without_effect(wanted)


def _findings_of_base(wanted: DesiredState, settings: ClusterSettings) -> Iterator[Finding]:
    adapters = [revision.bundle for revision in wanted.revisions if revision.bundle.base_name]
    if pods.needs_hub(wanted, settings) and any(each.base_name == BUILTIN for each in adapters):
        yield Finding(
            "BASE_MODEL_MISSING",
            f"the base model {BUILTIN} was converted by the trainer and is on no hub: put it into a volume, "
            "and name that in NEUROWEAVER_BASE_MODELS_CLAIM",
            is_blocking=True,
        )
    if unpinned := sorted({each.version for each in adapters if not each.base_model_digest}):
        yield Finding(
            "BASE_MODEL_NOT_VERIFIED",
            f"version {', '.join(unpinned)} has no digest of its base model, so pods cannot verify that it "
            "is the one that was trained on",
        )


def _findings_without_effect(wanted: DesiredState) -> Iterator[Finding]:
    """What was asked for and does nothing here."""
    spec = wanted.spec
    has_adapter = any(revision.bundle.base_name for revision in wanted.revisions)
    if pods.uses_vllm(spec) and has_adapter and spec.engine.adapter_mode == pb.ADAPTER_MODE_MERGED:
        yield Finding(
            "ADAPTER_NOT_MERGED",
            "vLLM never merges an adapter: it applies it beside the base model, at each token",
            "spec.engine.adapter_mode",
        )
    recovery = spec.recovery
    asked = {
        "restart_backoff": (recovery.restart_backoff.ToTimedelta(), _DEFAULT_BACKOFF),
        "max_restart_backoff": (recovery.max_restart_backoff.ToTimedelta(), _DEFAULT_LONGEST_BACKOFF),
    }
    for name, (wait, default) in asked.items():
        if wait and wait != default:
            yield Finding(
                "BACKOFF_OF_THE_KUBELET",
                "Kubernetes restarts pods with a back-off of its own, 10 seconds doubled up to 5 minutes, so "
                "this setting has no effect",
                f"spec.recovery.{name}",
            )


def _findings_of_canary(wanted: DesiredState, *, has_route: bool) -> Iterator[Finding]:
    spec = wanted.spec
    if spec.rollout.session_affinity != pb.SESSION_AFFINITY_NONE:
        yield Finding(
            "AFFINITY_NOT_KEPT",
            "a Service or an HTTPRoute cannot keep a conversation with its revision while traffic is split: "
            "set spec.kubernetes.traffic_routing to TRAFFIC_ROUTING_ROUTER if that matters",
            "spec.rollout.session_affinity",
        )
    if has_route:
        return
    weights = {revision.number: revision.weight_percent for revision in wanted.revisions}
    counts = {revision.number: scaling.least_replicas(revision) for revision in wanted.revisions}
    split = traffic.split_by_replicas(weights, counts)
    words = "without a gateway, traffic is split by the numbers of ready replicas"
    words += f": {split}" if split else ""
    yield Finding("WEIGHTS_BY_REPLICAS", words, "spec.rollout.canary.steps")


async def _findings_of_metrics(api: Api, wanted: DesiredState) -> list[Finding]:
    """An autoscaler without its metrics never moves, and says so only in its own status."""
    scalings = [revision.autoscaling for revision in wanted.revisions if revision.autoscaling is not None]
    by_resource = any(
        each.HasField("target_cpu_percent") or each.HasField("target_memory_percent") for each in scalings
    )
    by_custom = any(each.HasField("target_concurrency") or each.custom_metrics for each in scalings)
    found = []
    if by_resource and (obstacle := await _obstacle_to_metrics(api)):
        words = f"{obstacle}, so scaling by CPU or memory does nothing"
        found.append(Finding("METRICS_MISSING", words, "spec.autoscaling"))
    if by_custom and not await api.has_group("custom.metrics.k8s.io"):
        words = (
            "the cluster has no custom metrics API (custom.metrics.k8s.io), so scaling by concurrency or "
            "custom metrics does nothing"
        )
        found.append(Finding("CUSTOM_METRICS_MISSING", words, "spec.autoscaling"))
    return found


async def _obstacle_to_metrics(api: Api) -> str:
    """Empty if there is none. The metrics server is another than the API server, and may be away alone."""
    try:
        has_metrics = await api.has(POD_METRICS, repeats=False)
    except Refusal as error:
        if not error.is_worth_another_try:
            raise
        return f"the metrics server (metrics.k8s.io) does not answer ({error.message})"
    return "" if has_metrics else "the cluster has no metrics server (metrics.k8s.io)"


async def _has_namespace(api: Api, namespace: str) -> bool:
    """Also True where it may not be asked: applying the first object shows it then."""
    try:
        return await api.get(NAMESPACE, "", namespace) is not None
    except Refusal as error:
        if error.status == 403:
            return True
        raise


async def _room(api: Api) -> Room:
    try:
        nodes = await api.list(NODE)
        everywhere = await api.list(POD)
    except Refusal as error:
        if error.status == 403:
            return Room(None, why_unknown=f"free capacity is unknown: {to_backend_error(error)}")
        raise
    if not nodes.items:
        return Room(None, why_unknown="free capacity is unknown: the cluster has no nodes")
    return Room(nodes.items, everywhere.items)
