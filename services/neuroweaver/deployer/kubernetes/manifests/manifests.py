"""From a desired state to the objects that fulfil it. Pure: no cluster is asked.

Objects are dictionaries all the way to the wire, so that nothing a user wrote can become a line of YAML.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.cluster.kinds import (
    DEPLOYMENT,
    HTTP_ROUTE,
    OWNED,
    PROMETHEUS_RULE,
    SCALED_OBJECT,
    SERVICE_MONITOR,
    Kind,
    Object,
    kind_of,
)
from neuroweaver.deployer.domain.backend import DesiredRevision, DesiredState
from neuroweaver.deployer.kubernetes.manifests import (
    boundaries,
    monitoring,
    pods,
    router_pods,
    scaling,
    traffic,
)
from neuroweaver.deployer.kubernetes.manifests.scope import Scope
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.v1 import deployer_pb2 as pb


@dataclass(frozen=True)
class Cluster:
    """What a cluster can do beyond the plain. kinds: custom ones that it knows. has_router: whether the
    deployment's router answers by now. backup_selector: what the front of the backup that has the traffic
    selects; None if there is none.
    """

    kinds: frozenset[Kind] = frozenset()
    has_router: bool = False
    backup_selector: Mapping[str, str] | None = None


def obstacle_to_zero(wanted: DesiredState, settings: ClusterSettings, cluster: Cluster) -> str:
    """Why nothing would ever wake a deployment without replicas; empty if something would."""
    if SCALED_OBJECT not in cluster.kinds:
        return "scaling to zero needs KEDA, which is not installed: install it, or set min_replicas to 1"
    if not settings.prometheus_url:
        return "KEDA could not notice a first request: set NEUROWEAVER_PROMETHEUS_URL, or min_replicas to 1"
    # A router wakes by its metrics, so somebody must read them.
    is_read = Scope(wanted, settings).is_monitored and SERVICE_MONITOR in cluster.kinds
    if not settings.activation_query and not (is_read and router_pods.is_wanted(wanted)):
        return (
            "KEDA could not notice a first request: set spec.kubernetes.traffic_routing to "
            "TRAFFIC_ROUTING_ROUTER with monitoring, or NEUROWEAVER_ACTIVATION_QUERY to a query of the "
            "requests that arrive before the deployment, or min_replicas to 1"
        )
    return ""


def manifests(wanted: DesiredState, settings: ClusterSettings, cluster: Cluster) -> list[Object]:
    """All objects but the record, in the order in which they are applied. Raises BackendError for what
    cannot be.
    """
    identity.check_name(wanted.resource_name)
    objects = _objects(Scope(wanted, settings), cluster)
    return sorted(objects, key=lambda item: OWNED.index(kind_of(item)))


def _objects(scope: Scope, cluster: Cluster) -> Iterator[Object]:
    has_router = router_pods.is_wanted(scope.wanted)
    yield _front(scope, cluster)
    yield _network_policy(scope)
    if not scope.spec.kubernetes.service_account:
        yield from boundaries.account(scope, scope.name, rules=())
    for revision in scope.wanted.revisions:
        yield from _of_revision(scope, revision, cluster)
    if scope.is_monitored and SERVICE_MONITOR in cluster.kinds:
        yield monitoring.service_monitor(scope)
    if scope.is_monitored and PROMETHEUS_RULE in cluster.kinds:
        yield monitoring.prometheus_rule(scope)
    if scope.settings.gateway and HTTP_ROUTE in cluster.kinds:
        yield traffic.route(scope, has_router=has_router)
    if has_router:
        yield from router_pods.objects(scope)


def _front(scope: Scope, cluster: Cluster) -> Object:
    wanted = scope.wanted
    # Without a router nobody would understand what was meant for another model.
    is_needed = wanted.redirect is not None and wanted.redirect.model_id != wanted.key.model_id
    router = None
    if router_pods.is_wanted(wanted) and (cluster.has_router or is_needed):
        router = router_pods.own_labels(scope.name)
    return traffic.front(scope, router=router, backup_selector=cluster.backup_selector)


def _network_policy(scope: Scope) -> Object:
    egress = [{"ports": [boundaries.tcp(scope.settings.registry_port)]}]
    if pods.needs_hub(scope.wanted, scope.settings):
        egress.append({"ports": [boundaries.tcp(scope.settings.hub_port)]})
    return boundaries.network_policy(scope, scope.name, {identity.DEPLOYMENT: scope.name}, egress)


def _of_revision(scope: Scope, revision: DesiredRevision, cluster: Cluster) -> Iterator[Object]:
    yield _deployment(scope, revision)
    yield traffic.of_revision(scope, revision.number)
    if scaling.scales_to_zero(revision):
        if obstacle := obstacle_to_zero(scope.wanted, scope.settings, cluster):
            raise BackendError(Trouble.REFUSED, obstacle, field="spec.autoscaling.min_replicas")
        yield scaling.scaled_object(scope, revision)
    elif revision.autoscaling is not None:
        yield scaling.autoscaler(scope, revision)
    if (replicas := scaling.least_replicas(revision)) >= 2:
        yield boundaries.disruption_budget(scope, revision.number, replicas)


def _deployment(scope: Scope, revision: DesiredRevision) -> Object:
    spec: Object = {
        "selector": {"matchLabels": scope.selector(revision.number)},
        "revisionHistoryLimit": 2,
        "progressDeadlineSeconds": _progress_deadline_s(scope.spec),
        "strategy": _strategy(scope.wanted),
        "template": pods.template(scope, revision),
    }
    if revision.autoscaling is None:
        if not 0 <= revision.replicas <= 1000:
            raise BackendError(
                Trouble.REFUSED,
                f"{revision.replicas} replicas are not between 0 and 1000",
                field="spec.replicas",
            )
        spec["replicas"] = revision.replicas
    deployment = scope.of_revision(DEPLOYMENT, revision.number, spec=spec)
    deployment["metadata"]["annotations"][identity.VERSION] = revision.bundle.version
    return deployment


def _strategy(wanted: DesiredState) -> Object:
    if wanted.replacement == pb.REPLACEMENT_MODE_RECREATE:
        return {"type": "Recreate"}
    rollout = wanted.spec.rollout
    surge = rollout.max_surge if rollout.HasField("max_surge") else 1
    # Both at 0 could never move.
    unavailable = rollout.max_unavailable or int(surge == 0)
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}


def _progress_deadline_s(spec: pb.DeploymentSpec) -> int:
    """A start may take its time before it counts as stuck."""
    startup = spec.startup_timeout.ToTimedelta().total_seconds()
    progress = spec.rollout.progress_deadline.ToTimedelta().total_seconds()
    return math.ceil(max(startup, progress, 60.0))
