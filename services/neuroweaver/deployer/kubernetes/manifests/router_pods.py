"""The router of a deployment: two pods between the Service that clients use and those of the revisions.

They know what a Service cannot: exact weights, which conversation belongs to which revision, and the name of
the model that takes over. They need one right in the cluster, to read their own routes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from neuroweaver.cluster.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    ROLE,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
    Object,
)
from neuroweaver.deployer.domain.backend import Wanted
from neuroweaver.deployer.domain.specification import has_router
from neuroweaver.deployer.kubernetes.manifests import pods, routes, traffic
from neuroweaver.deployer.kubernetes.naming import containers, identity
from neuroweaver.deployer.kubernetes.settings import ClusterSettings

ROUTER: Final = "router"
READY_REASON: Final = "ROUTER_NOT_READY"

_REPLICAS: Final = 2
_API_PORTS: Final = (443, 6443)
_MODULE: Final = "neuroweaver.deployer.kubernetes.in_pods.router"

Metadata = Callable[[str], Object]


def is_wanted(wanted: Wanted) -> bool:
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
    told = f"no pod of {found['metadata']['name']} is ready"
    return f"{told}: {words}" if words else told


def objects(
    wanted: Wanted,
    namespace: str,
    settings: ClusterSettings,
    labels: Mapping[str, str],
    metadata: Metadata,
    sources: Sequence[Object],
) -> list[Object]:
    """labels: of the pods, beside those that tell whose they are. sources: who may call it, as a
    NetworkPolicy says it.
    """
    name = named(wanted.resource_name)

    def made(kind: Kind, **fields: Any) -> Object:
        about = metadata(name)
        about["labels"] |= {identity.ROLE: ROUTER}
        return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": about} | fields

    own = own_labels(wanted.resource_name)
    readable = {
        "apiGroups": [""],
        "resources": [CONFIG_MAP.plural],
        "resourceNames": [name],
        "verbs": ["get", "list", "watch"],
    }
    return [
        made(SERVICE_ACCOUNT, automountServiceAccountToken=False),
        made(ROLE, rules=[readable]),
        made(
            ROLE_BINDING,
            roleRef={"apiGroup": ROLE.group, "kind": ROLE.name, "name": name},
            subjects=[{"kind": SERVICE_ACCOUNT.name, "name": name, "namespace": namespace}],
        ),
        made(NETWORK_POLICY, spec=_network(wanted, own, sources)),
        made(
            DEPLOYMENT,
            spec={
                "replicas": _REPLICAS,
                "selector": {"matchLabels": own},
                "revisionHistoryLimit": 2,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "template": {
                    "metadata": {
                        "labels": dict(labels) | own,
                        "annotations": {identity.KEY: identity.key_annotation(wanted.key)},
                    },
                    "spec": _pod(wanted, namespace, name, own, settings),
                },
            },
        ),
        made(
            DISRUPTION_BUDGET,
            spec={
                "selector": {"matchLabels": own},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "maxUnavailable": 1,
            },
        ),
        # For Prometheus: callers use the deployment's own.
        made(SERVICE, spec={"type": "ClusterIP", "selector": own, "ports": [traffic.port()]}),
        made(CONFIG_MAP, data={routes.ENTRY: routes.table(wanted, namespace).written()}),
    ]


def _pod(wanted: Wanted, namespace: str, name: str, own: dict[str, str], settings: ClusterSettings) -> Object:
    drain_s = math.ceil(wanted.spec.drain_timeout.ToTimedelta().total_seconds())
    pod: Object = {
        "serviceAccountName": name,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": drain_s + 2 * pods.NOTICE_S,
        "securityContext": pods.security(),
        "containers": [
            {
                "name": ROUTER,
                "image": settings.fetch_image,
                "command": ["python", "-m", _MODULE],
                "args": [f"--namespace={namespace}", f"--config-map={name}", f"--drain-s={drain_s}"],
                "ports": [
                    {"name": containers.PORT_NAME, "containerPort": containers.PORT, "protocol": "TCP"}
                ],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
                "securityContext": pods.hardened(),
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "lifecycle": {"preStop": {"sleep": {"seconds": pods.NOTICE_S}}},
                "startupProbe": _probe("/health/live", 2, 30),
                "livenessProbe": _probe("/health/live", 10, 3),
                "readinessProbe": _probe("/health/ready", 2, 2),
            }
        ],
        "topologySpreadConstraints": [pods.spread(own)],
    }
    return pod | pods.pulling_and_priority(wanted.spec.kubernetes)


def _network(wanted: Wanted, own: dict[str, str], sources: Sequence[Object]) -> Object:
    replicas = {"podSelector": {"matchLabels": {identity.DEPLOYMENT: wanted.resource_name}}}
    port = [{"port": containers.PORT, "protocol": "TCP"}]
    egress: list[Object] = [
        traffic.to_dns(),
        {"to": [replicas], "ports": port},
        # The API server is no pod, so no selector finds it.
        {"ports": [{"port": each, "protocol": "TCP"} for each in _API_PORTS]},
    ]
    if wanted.spec.recovery.HasField("backup") or wanted.redirect is not None:
        egress.append({"to": [{"namespaceSelector": {}}], "ports": port})
    if wanted.redirect is not None and (beyond := _port_of(wanted.redirect.url)) != containers.PORT:
        egress.append({"ports": [{"port": beyond, "protocol": "TCP"}]})  # a gateway need be no pod
    return {
        "podSelector": {"matchLabels": own},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": list(sources), "ports": port}],
        "egress": egress,
    }


def _port_of(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _probe(path: str, period_s: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": containers.PORT_NAME, "scheme": "HTTP"},
        "periodSeconds": period_s,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _deployment_in(live: Mapping[Any, Object]) -> Object | None:
    return next((each for each in live.values() if each["kind"] == DEPLOYMENT.name and is_router(each)), None)
