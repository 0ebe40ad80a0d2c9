"""The router of a deployment: two pods between the Service that clients use and those of the revisions.

They know what a Service cannot: exact weights, which conversation belongs to which revision, and the name of
the model that takes over. They need one right in the cluster, to read their own routes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlsplit

from neuroweaver.cluster import quantities
from neuroweaver.cluster.kinds import CONFIG_MAP, DEPLOYMENT, DISRUPTION_BUDGET, SERVICE, Object
from neuroweaver.deployer.domain.backend import DesiredState
from neuroweaver.deployer.domain.specification import has_router
from neuroweaver.deployer.kubernetes.manifests import boundaries, pods, routes, traffic
from neuroweaver.deployer.kubernetes.manifests.scope import Scope
from neuroweaver.deployer.kubernetes.naming import containers, identity

ROUTER: Final = "router"
READY_REASON: Final = "ROUTER_NOT_READY"

_REPLICAS: Final = 2
_OWN_BYTES: Final = 256 << 20
"""Of memory, beside the bodies of requests."""
_API_PORTS: Final = (443, 6443)
_MODULE: Final = "neuroweaver.deployer.kubernetes.in_pods.router"


def is_wanted(wanted: DesiredState) -> bool:
    return has_router(wanted.spec, wanted.key)


def named(resource_name: str) -> str:
    return f"{resource_name}-router"


def own_labels(resource_name: str) -> dict[str, str]:
    """Of the pods. Not those of the deployment's replicas: they are none."""
    return {identity.ROUTER: resource_name}


def is_router(found: Object) -> bool:
    return bool(found["metadata"].get("labels", {}).get(identity.ROLE) == ROUTER)


def is_available(live: Mapping[Any, Object]) -> bool:
    """Whether a pod of it is ready, by the objects of the deployment that there are."""
    found = _deployment_in(live)
    return bool(found and (found.get("status") or {}).get("availableReplicas", 0))


def obstacle(live: Mapping[Any, Object]) -> str:
    """Why it does not answer, in a sentence; empty if it does, or is not there."""
    found = _deployment_in(live)
    if found is None or is_available(live):
        return ""
    conditions = (found.get("status") or {}).get("conditions") or ()
    words = "; ".join(
        str(each["message"]) for each in conditions if each.get("status") != "True" and each.get("message")
    )
    state = f"no pod of {found['metadata']['name']} is ready"
    return f"{state}: {words}" if words else state


def objects(scope: Scope) -> list[Object]:
    name, own = named(scope.name), own_labels(scope.name)
    role = {identity.ROLE: ROUTER}
    readable = {
        "apiGroups": [""],
        "resources": [CONFIG_MAP.plural],
        "resourceNames": [name],
        "verbs": ["get", "list", "watch"],
    }
    deployment = {
        "replicas": _REPLICAS,
        "selector": {"matchLabels": own},
        "revisionHistoryLimit": 2,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": _template(scope, name, own),
    }
    table = routes.table(scope.wanted, scope.namespace)
    return [
        *boundaries.account(scope, name, [readable], role),
        boundaries.network_policy(scope, name, own, _egress(scope.wanted), role),
        scope.object(DEPLOYMENT, name, role, spec=deployment),
        scope.object(DISRUPTION_BUDGET, name, role, spec=boundaries.budget(own, maxUnavailable=1)),
        # For Prometheus: callers use the deployment's own.
        scope.object(SERVICE, name, role, spec=traffic.cluster_ip(own)),
        scope.object(CONFIG_MAP, name, role, data={routes.ENTRY: routes.written(table)}),
    ]


def _template(scope: Scope, name: str, own: dict[str, str]) -> Object:
    labels = scope.labels | {"app.kubernetes.io/name": "model-router"} | own
    del labels[identity.DEPLOYMENT]
    drain_s = math.ceil(scope.spec.drain_timeout.ToTimedelta().total_seconds())
    live, ready = pods.asking("/health/live"), pods.asking("/health/ready")
    container = pods.container(
        ROUTER,
        scope.settings.fetch_image,
        ["python", "-P", "-m", _MODULE],
        args=[f"--namespace={scope.namespace}", f"--config-map={name}", f"--drain-s={drain_s}"],
        **({"env": limits} if (limits := pods.http_limits(scope.settings)) else {}),
        resources={"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": _memory(scope)}},
        startupProbe=pods.probe(live, 2, 30, timeout_s=2),
        livenessProbe=pods.probe(live, 10, 3, timeout_s=2),
        readinessProbe=pods.probe(ready, 2, 2, timeout_s=2),
        **pods.SERVING,
    )
    return {
        "metadata": {
            "labels": labels,
            "annotations": {identity.KEY: identity.key_annotation(scope.wanted.key)},
        },
        "spec": pods.pod(scope, name, own, has_token=True, containers=[container]),
    }


def _memory(scope: Scope) -> str:
    """Room for all the bodies that it may hold."""
    return quantities.written(Decimal(_OWN_BYTES + scope.settings.http_limits.bodies_bytes))


def _egress(wanted: DesiredState) -> list[Object]:
    replicas = {"podSelector": {"matchLabels": {identity.DEPLOYMENT: wanted.resource_name}}}
    port = [boundaries.tcp(containers.PORT)]
    egress: list[Object] = [
        {"to": [replicas], "ports": port},
        # The API server is no pod, so no selector finds it.
        {"ports": [boundaries.tcp(number) for number in _API_PORTS]},
    ]
    if wanted.spec.recovery.HasField("backup") or wanted.redirect is not None:
        egress.append({"to": [{"namespaceSelector": {}}], "ports": port})
    if wanted.redirect is not None and (beyond := _port_of(wanted.redirect.url)) != containers.PORT:
        egress.append({"ports": [boundaries.tcp(beyond)]})  # a gateway need be no pod
    return egress


def _port_of(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _deployment_in(live: Mapping[Any, Object]) -> Object | None:
    return next((each for each in live.values() if each["kind"] == DEPLOYMENT.name and is_router(each)), None)
