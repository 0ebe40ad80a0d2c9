"""How requests reach the revisions.

Without a mesh there is one Service in front. While one revision has all the traffic, its selector names
that revision. While several share it, the selector names the deployment alone, and kube-proxy gives every
ready pod the same share: the weights are those of the numbers of replicas. Neither change touches a pod.

With a Gateway, an HTTPRoute splits by the exact weights.

Neither keeps a conversation with its revision: a Service knows connections and not headers, and a route's
session persistence goes by a value that the gateway makes, not by `x-conversation-id`. Neither rewrites a
body, and the body of a request names its model.

A router does all three. The Service in front then selects its pods, and the route leads to that Service. As
long as no pod of the router is ready, the Service goes by the revisions as if there were none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.cluster.kinds import HTTP_ROUTE, SERVICE, Object
from neuroweaver.deployer.domain.backend import DesiredState, Key
from neuroweaver.deployer.kubernetes.manifests.scope import Scope
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.kubernetes.naming.containers import PORT, PORT_NAME
from neuroweaver.deployer.routing import shares

_CLUSTER_ENDPOINT: Final = re.compile(
    r"http://(?P<name>[a-z0-9-]{1,63})\.(?P<namespace>[a-z0-9-]{1,63})\.svc(\.cluster\.local)?:8000/v1",
    re.ASCII,
)

_PORT: Final = {"name": PORT_NAME, "port": PORT, "targetPort": PORT_NAME, "protocol": "TCP"}


def endpoint(name: str, namespace: str) -> str:
    return f"http://{name}.{namespace}.svc:{PORT}/v1"


def backup(redirect: str) -> tuple[str, str]:
    """Name and namespace of the deployment that has an endpoint. Raises BackendError for one that is none
    on Kubernetes.
    """
    found = _CLUSTER_ENDPOINT.fullmatch(redirect)
    if found is None:
        raise BackendError(
            Trouble.REFUSED,
            f"traffic cannot be sent to {redirect}: it is not the endpoint of a deployment on Kubernetes",
            field="spec.recovery.backup",
        )
    return found["name"], found["namespace"]


def front(
    scope: Scope, *, router: Mapping[str, str] | None = None, backup_selector: Mapping[str, str] | None = None
) -> Object:
    """The Service that clients use. router: the labels of the router's pods, if it is to answer.
    backup_selector: that of the backup's own front, while the backup has the traffic; None if it is not
    known.
    """
    redirect = scope.wanted.redirect
    if router is None and redirect is not None:
        spec = _redirected(redirect.url, scope.namespace, backup_selector)
    else:
        spec = cluster_ip(front_selector(scope.wanted) if router is None else router)
    return scope.object(SERVICE, labels={identity.ROLE: "front"}, spec=spec)


def front_selector(wanted: DesiredState) -> dict[str, str]:
    serving = [revision for revision in wanted.revisions if revision.weight_percent > 0]
    chosen = {identity.DEPLOYMENT: wanted.resource_name}
    if len(serving) <= 1:
        return chosen | {identity.REVISION: str(serving[0].number) if serving else "0"}
    if len(serving) < len(wanted.revisions):
        # The selector cannot tell those that share the traffic from one that has none.
        words = "a Service cannot leave out one revision while it splits traffic among others"
        raise BackendError(Trouble.REFUSED, words)
    return chosen


def split_by_replicas(weights: Mapping[int, int], ready: Mapping[int, int], tolerated: int = 0) -> str:
    """What each revision really gets by its number of ready replicas; empty if that is near its weight.

    tolerated: in percentage points.
    """
    serving = [number for number, weight in weights.items() if weight > 0]
    real = shares.percent({number: ready.get(number, 0) for number in serving})
    if len(serving) < 2 or all(abs(real[number] - weights[number]) <= tolerated for number in serving):
        return ""
    return ", ".join(f"revision {number} gets {real[number]} % for {weights[number]} %" for number in serving)


def of_revision(scope: Scope, number: int) -> Object:
    """One revision's own Service: for a route's weights, and for Prometheus also while it has no traffic."""
    return scope.of_revision(SERVICE, number, "revision", spec=cluster_ip(scope.selector(number)))


def route(scope: Scope, *, has_router: bool) -> Object:
    """The exact split, at a gateway, or behind the router."""
    wanted = scope.wanted
    gateway_namespace, _, gateway_name = scope.settings.gateway.partition("/")
    backends = [
        {
            "name": identity.of_revision(wanted.resource_name, revision.number),
            "port": PORT,
            "weight": revision.weight_percent,
        }
        for revision in wanted.revisions
    ]
    if has_router or wanted.redirect or not any(backend["weight"] for backend in backends):
        backends = [{"name": wanted.resource_name, "port": PORT, "weight": 1}]
    rewrite = {
        "type": "URLRewrite",
        "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}},
    }
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": route_path(wanted.key)}}],
        "filters": [rewrite],
        "backendRefs": backends,
    }
    parent = {"namespace": gateway_namespace, "name": gateway_name}
    return scope.object(HTTP_ROUTE, spec={"parentRefs": [parent], "rules": [rule]})


def route_path(key: Key) -> str:
    return f"/{key.project}/{key.model_id}/{key.name}"


def _redirected(redirect: str, namespace: str, selector: Mapping[str, str] | None) -> Object:
    name, its_namespace = backup(redirect)
    if its_namespace == namespace:
        return cluster_ip(selector or {identity.DEPLOYMENT: name})
    # DNS sends clients on. Both listen on the same port, without which this could not work.
    host = f"{name}.{its_namespace}.svc.cluster.local"
    return {"type": "ExternalName", "externalName": host, "ports": [_PORT]}


def cluster_ip(selector: Mapping[str, str]) -> Object:
    """The spec of a Service."""
    return {"type": "ClusterIP", "selector": dict(selector), "ports": [_PORT]}
