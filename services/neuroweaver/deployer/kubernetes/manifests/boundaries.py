"""What pods may do in the cluster, who reaches them, and how many may be taken away at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from neuroweaver.cluster.kinds import (
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    ROLE,
    ROLE_BINDING,
    SERVICE_ACCOUNT,
    Object,
)
from neuroweaver.deployer.kubernetes.manifests.scope import Scope
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.kubernetes.naming.containers import PORT

Labels = Mapping[str, str]


def account(scope: Scope, name: str, rules: Sequence[Object], labels: Labels | None = None) -> list[Object]:
    """The pods' identity. Its Role says in one place what they may do in the cluster."""
    role = {"apiGroup": ROLE.group, "kind": ROLE.name, "name": name}
    subject = {"kind": SERVICE_ACCOUNT.name, "name": name, "namespace": scope.namespace}
    return [
        scope.object(SERVICE_ACCOUNT, name, labels, automountServiceAccountToken=False),
        scope.object(ROLE, name, labels, rules=list(rules)),
        scope.object(ROLE_BINDING, name, labels, roleRef=role, subjects=[subject]),
    ]


def network_policy(
    scope: Scope, name: str, pods: Labels, egress: Sequence[Object], labels: Labels | None = None
) -> Object:
    """egress: beside names, without which nothing else is found."""
    spec = {
        "podSelector": {"matchLabels": dict(pods)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": _callers(scope), "ports": [tcp(PORT)]}],
        "egress": [{"ports": [{"port": 53, "protocol": "UDP"}, tcp(53)]}, *egress],
    }
    return scope.object(NETWORK_POLICY, name, labels, spec=spec)


def budget(pods: Labels, **limit: int) -> Object:
    """The spec of a PodDisruptionBudget, under which a pod that is not ready may always go."""
    return {"selector": {"matchLabels": dict(pods)}, "unhealthyPodEvictionPolicy": "AlwaysAllow"} | limit


def disruption_budget(scope: Scope, number: int, replicas: int) -> Object:
    """Lets at least one pod of the revision go: one that lets none go would block every drain of a node."""
    options = scope.spec.kubernetes
    limit = {"maxUnavailable": 1}
    if options.HasField("min_available"):
        limit = {"minAvailable": min(options.min_available, replicas - 1)}
    return scope.of_revision(DISRUPTION_BUDGET, number, spec=budget(scope.selector(number), **limit))


def tcp(port: int) -> Object:
    return {"port": port, "protocol": "TCP"}


def _callers(scope: Scope) -> list[Object]:
    """Who may call the model: namespaces, and every router in this one, be it this deployment's own, or that
    of one whose backup it is.
    """
    settings = scope.settings
    namespaces = [*scope.spec.kubernetes.client_namespaces] or [scope.namespace, settings.own_namespace]
    namespaces += [settings.own_namespace, settings.gateway.partition("/")[0]]
    if scope.is_monitored:
        namespaces.append(settings.monitoring_namespace)
    is_router = {"key": identity.ROUTER, "operator": "Exists"}
    return [
        *(
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
            for name in sorted(set(filter(None, namespaces)))
        ),
        {"podSelector": {"matchExpressions": [is_router]}},
    ]
