"""The kinds of objects that the backend makes or reads, and where the API server keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

Object = dict[str, Any]
"""An object of the API as JSON."""


@dataclass(frozen=True)
class Kind:
    """is_custom: its CustomResourceDefinition may be missing from a cluster."""

    api_version: str
    name: str
    plural: str
    is_namespaced: bool = True
    is_custom: bool = False

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def root(self) -> str:
        return f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"

    @property
    def resource(self) -> str:
        """As RBAC and error messages call it, such as `deployments.apps`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str = "", name: str = "") -> str:
        within = f"/namespaces/{namespace}" if self.is_namespaced and namespace else ""
        return f"{self.root}{within}/{self.plural}" + (f"/{name}" if name else "")

    def object(self, metadata: Object, **fields: Any) -> Object:
        """One of this kind, as it is applied."""
        return {"apiVersion": self.api_version, "kind": self.name, "metadata": metadata} | fields


CONFIG_MAP: Final = Kind("v1", "ConfigMap", "configmaps")
SERVICE: Final = Kind("v1", "Service", "services")
SERVICE_ACCOUNT: Final = Kind("v1", "ServiceAccount", "serviceaccounts")
ROLE: Final = Kind("rbac.authorization.k8s.io/v1", "Role", "roles")
ROLE_BINDING: Final = Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
NETWORK_POLICY: Final = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
DEPLOYMENT: Final = Kind("apps/v1", "Deployment", "deployments")
AUTOSCALER: Final = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
DISRUPTION_BUDGET: Final = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
SERVICE_MONITOR: Final = Kind("monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors", is_custom=True)
PROMETHEUS_RULE: Final = Kind("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules", is_custom=True)
SCALED_OBJECT: Final = Kind("keda.sh/v1alpha1", "ScaledObject", "scaledobjects", is_custom=True)
HTTP_ROUTE: Final = Kind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes", is_custom=True)

POD: Final = Kind("v1", "Pod", "pods")
REPLICA_SET: Final = Kind("apps/v1", "ReplicaSet", "replicasets")
NODE: Final = Kind("v1", "Node", "nodes", is_namespaced=False)
NAMESPACE: Final = Kind("v1", "Namespace", "namespaces", is_namespaced=False)
POD_METRICS: Final = Kind("metrics.k8s.io/v1beta1", "PodMetrics", "pods", is_custom=True)
ACCESS_REVIEW: Final = Kind(
    "authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", is_namespaced=False
)

OWNED: Final = (
    SERVICE_ACCOUNT,
    ROLE,
    ROLE_BINDING,
    NETWORK_POLICY,
    DEPLOYMENT,
    AUTOSCALER,
    SCALED_OBJECT,
    DISRUPTION_BUDGET,
    SERVICE_MONITOR,
    PROMETHEUS_RULE,
    SERVICE,
    HTTP_ROUTE,
    CONFIG_MAP,
)
"""In the order in which they are applied: traffic moves once what it moves to is there."""

_BY_NAME: Final = {(kind.api_version, kind.name): kind for kind in OWNED}


def kind_of(found: Object) -> Kind:
    return _BY_NAME[found["apiVersion"], found["kind"]]


@dataclass(frozen=True, order=True)
class Ref:
    """An object among those of one namespace."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


def ref(found: Object) -> Ref:
    return Ref(found["kind"], found["metadata"]["name"])


def has_controller(found: Object) -> bool:
    """Whether another object made it and looks after it."""
    return any(owner.get("controller") for owner in found["metadata"].get("ownerReferences") or ())


def is_going(found: Object) -> bool:
    """Whether it was deleted, and is not gone yet."""
    return bool(found["metadata"].get("deletionTimestamp"))
