"""Who changes the number of a revision's replicas: nobody, a HorizontalPodAutoscaler, or KEDA where it may
be zero.

Each revision has its own, sized by its own share of the traffic: a candidate never inflates the stable one.
"""

from __future__ import annotations

import math

from neuroweaver.cluster import quantities
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.cluster.kinds import AUTOSCALER, DEPLOYMENT, SCALED_OBJECT, Object
from neuroweaver.deployer.domain.backend import DesiredRevision
from neuroweaver.deployer.kubernetes.manifests.monitoring import CONCURRENCY, DEPLOYMENT_LABEL
from neuroweaver.deployer.kubernetes.manifests.scope import Scope
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.routing.metrics import WAITING
from neuroweaver.v1 import deployer_pb2 as pb

_DEFAULT_CPU_PERCENT = 80
_DEFAULT_CONCURRENCY = 8.0
_LONGEST_STABILIZATION_S = 3600


def scales_to_zero(revision: DesiredRevision) -> bool:
    scaling = revision.autoscaling
    return scaling is not None and scaling.HasField("min_replicas") and scaling.min_replicas == 0


def least_replicas(revision: DesiredRevision) -> int:
    scaling = revision.autoscaling
    if scaling is None:
        return revision.replicas
    return scaling.min_replicas if scaling.HasField("min_replicas") else 1


def autoscaler(scope: Scope, revision: DesiredRevision) -> Object:
    scaling = _autoscaling(revision)
    spec = {
        "scaleTargetRef": _target(scope, revision),
        "minReplicas": max(1, scaling.min_replicas),
        "maxReplicas": max(1, scaling.min_replicas, scaling.max_replicas),
        "metrics": _metrics(scaling),
        "behavior": _behavior(scaling),
    }
    return scope.of_revision(AUTOSCALER, revision.number, spec=spec)


def scaled_object(scope: Scope, revision: DesiredRevision) -> Object:
    """KEDA makes the HorizontalPodAutoscaler itself.

    What wakes it is the query of the settings, else the requests that wait in its router.
    """
    scaling, settings = _autoscaling(revision), scope.settings
    target = _target(scope, revision)
    arriving = f'{WAITING}{{namespace="{scope.namespace}",{DEPLOYMENT_LABEL}="{scope.name}"}}'
    waking = settings.activation_query.replace("{deployment}", scope.name) or f"sum({arriving}) or vector(0)"
    concurrency = scaling.target_concurrency or _DEFAULT_CONCURRENCY
    selected = f'{CONCURRENCY}{{namespace="{scope.namespace}",pod=~"{target["name"]}-.*"}}'
    triggers: list[Object] = [
        {
            "type": "prometheus",
            "metadata": {
                "serverAddress": settings.prometheus_url,
                "query": query,
                "threshold": f"{concurrency:g}",
                "activationThreshold": "0",
            },
        }
        for query in (f"sum({selected}) or vector(0)", waking)
    ]
    triggers += [
        {"type": resource, "metricType": "Utilization", "metadata": {"value": str(percent)}}
        for resource, percent in _percents(scaling)
    ]
    spec = {
        "scaleTargetRef": target,
        "minReplicaCount": 0,
        "maxReplicaCount": scaling.max_replicas,
        "pollingInterval": 15,
        "cooldownPeriod": math.ceil(scaling.idle_timeout.ToTimedelta().total_seconds()) or 600,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(scaling)}},
        "triggers": triggers,
    }
    return scope.of_revision(SCALED_OBJECT, revision.number, spec=spec)


def _autoscaling(revision: DesiredRevision) -> pb.Autoscaling:
    return revision.autoscaling or pb.Autoscaling()


def _target(scope: Scope, revision: DesiredRevision) -> Object:
    name = identity.of_revision(scope.name, revision.number)
    return {"apiVersion": DEPLOYMENT.api_version, "kind": DEPLOYMENT.name, "name": name}


def _percents(scaling: pb.Autoscaling) -> list[tuple[str, int]]:
    """By resource; CPU where nothing else is aimed at."""
    aimed = []
    if scaling.HasField("target_cpu_percent"):
        aimed.append(("cpu", scaling.target_cpu_percent))
    if scaling.HasField("target_memory_percent"):
        aimed.append(("memory", scaling.target_memory_percent))
    has_others = scaling.HasField("target_concurrency") or scaling.custom_metrics
    return aimed if aimed or has_others else [("cpu", _DEFAULT_CPU_PERCENT)]


def _metrics(scaling: pb.Autoscaling) -> list[Object]:
    metrics: list[Object] = [
        {
            "type": "Resource",
            "resource": {"name": name, "target": {"type": "Utilization", "averageUtilization": percent}},
        }
        for name, percent in _percents(scaling)
    ]
    if scaling.HasField("target_concurrency"):
        metrics.append(_pods_metric(CONCURRENCY, f"{math.ceil(scaling.target_concurrency * 1000)}m"))
    metrics += [_pods_metric(custom.name, custom.average_value) for custom in scaling.custom_metrics]
    return metrics


def _pods_metric(name: str, value: str) -> Object:
    try:
        average = quantities.canonical(value)
    except quantities.NotAQuantity as error:
        field = f"spec.autoscaling.custom_metrics[{name}].average_value"
        raise BackendError(Trouble.REFUSED, str(error), field=field) from error
    return {
        "type": "Pods",
        "pods": {"metric": {"name": name}, "target": {"type": "AverageValue", "averageValue": average}},
    }


def _behavior(scaling: pb.Autoscaling) -> Object:
    delay = 300.0
    if scaling.HasField("scale_down_delay"):
        delay = scaling.scale_down_delay.ToTimedelta().total_seconds()
    return {"scaleDown": {"stabilizationWindowSeconds": min(math.ceil(delay), _LONGEST_STABILIZATION_S)}}
