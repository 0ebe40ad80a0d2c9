"""From a wish to the objects that fulfil it. Pure: the same wish gives the same objects, and no cluster is
asked.

Objects are dictionaries all the way to the wire, so that nothing a user wrote can become a line of YAML.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neuroweaver.cluster.api import FIELD_MANAGER
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.cluster.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    HTTP_ROUTE,
    NETWORK_POLICY,
    OWNED,
    PROMETHEUS_RULE,
    ROLE,
    ROLE_BINDING,
    SCALED_OBJECT,
    SERVICE_ACCOUNT,
    SERVICE_MONITOR,
    Kind,
    Object,
    kind_of,
    ref,
)
from neuroweaver.deployer.domain.backend import Wanted, WantedRevision
from neuroweaver.deployer.kubernetes.manifests import monitoring, pods, router_pods, scaling, traffic
from neuroweaver.deployer.kubernetes.naming import containers, identity
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


def namespace_of(spec: pb.DeploymentSpec, settings: ClusterSettings) -> str:
    return spec.kubernetes.namespace or settings.namespace


def is_monitored(spec: pb.DeploymentSpec) -> bool:
    return spec.kubernetes.monitoring or not spec.kubernetes.HasField("monitoring")


def obstacle_to_zero(wanted: Wanted, settings: ClusterSettings, cluster: Cluster) -> str:
    """Why nothing would ever wake a deployment without replicas; empty if something would."""
    # A router wakes by its figures, so somebody must read them.
    is_read = is_monitored(wanted.spec) and SERVICE_MONITOR in cluster.kinds
    has_router = router_pods.is_wanted(wanted) and is_read
    has_keda = SCALED_OBJECT in cluster.kinds
    return scaling.obstacle_to_zero(settings, has_keda=has_keda, has_router=has_router)


def manifests(wanted: Wanted, settings: ClusterSettings, cluster: Cluster) -> list[Object]:
    """All objects but the record, in the order in which they are applied. Raises BackendError for what
    cannot be.
    """
    made = _Manifests(wanted, settings, cluster).all()
    return sorted(made, key=lambda each: OWNED.index(kind_of(each)))


def record(wanted: Wanted, settings: ClusterSettings, objects: Sequence[Object]) -> Object:
    """Written once all the rest is as wished: what the last wish that was carried out as a whole was."""
    weights = {str(revision.number): revision.weight_percent for revision in wanted.revisions}
    return {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.name,
        "metadata": _Manifests(wanted, settings, Cluster()).metadata(wanted.resource_name),
        "data": {
            "generation": str(wanted.generation),
            "weights": json.dumps(weights, sort_keys=True),
            "redirect": wanted.redirect.url if wanted.redirect else "",
            "objects": json.dumps(sorted(str(ref(each)) for each in objects)),
        },
    }


class _Manifests:
    def __init__(self, wanted: Wanted, settings: ClusterSettings, cluster: Cluster) -> None:
        identity.check_name(wanted.resource_name)
        self._wanted = wanted
        self._name = wanted.resource_name
        self._spec = wanted.spec
        self._namespace = namespace_of(wanted.spec, settings)
        self._settings = settings
        self._cluster = cluster
        self._labels = {
            **identity.checked_labels(wanted.spec.labels),
            "app.kubernetes.io/name": "model-server",
            "app.kubernetes.io/instance": self._name,
            "app.kubernetes.io/part-of": "neuroweaver",
            identity.MANAGED_BY: FIELD_MANAGER,
            identity.DEPLOYMENT: self._name,
        }

    def all(self) -> list[Object]:
        made = [self._front(), self._network_policy()]
        if not self._spec.kubernetes.service_account:
            made += self._account()
        for revision in self._wanted.revisions:
            made += self._revision(revision)
        if is_monitored(self._spec):
            made += self._monitors()
        if self._settings.gateway and HTTP_ROUTE in self._cluster.kinds:
            metadata = self.metadata(self._name)
            gateway = self._settings.gateway
            made.append(
                traffic.route(self._wanted, gateway, metadata, has_router=router_pods.is_wanted(self._wanted))
            )
        if router_pods.is_wanted(self._wanted):
            labels = self._labels | {"app.kubernetes.io/name": "model-router"}
            del labels[identity.DEPLOYMENT]
            made += router_pods.objects(
                self._wanted, self._namespace, self._settings, labels, self.metadata, self._callers()
            )
        return made

    def _front(self) -> Object:
        metadata = self.metadata(self._name, {identity.ROLE: "front"})
        wanted, backup_selector = self._wanted, self._cluster.backup_selector
        is_answering = self._cluster.has_router or (
            # Without it nobody would understand what was meant for another model.
            wanted.redirect is not None and wanted.redirect.model_id != wanted.key.model_id
        )
        router = None
        if is_answering and router_pods.is_wanted(self._wanted):
            router = router_pods.own_labels(self._name)
        return traffic.front(
            wanted, self._namespace, metadata, router=router, backup_selector=backup_selector
        )

    def metadata(self, name: str, labels: dict[str, str] | None = None) -> Object:
        return {
            "name": name,
            "namespace": self._namespace,
            "labels": self._labels | (labels or {}),
            "annotations": {identity.KEY: identity.key_annotation(self._wanted.key)},
        }

    def _revision(self, revision: WantedRevision) -> list[Object]:
        name = identity.of_revision(self._name, revision.number)
        labels = {identity.REVISION: str(revision.number)}
        made = [
            self._deployment(name, revision, labels),
            traffic.of_revision(
                self._wanted, revision.number, self.metadata(name, labels | {identity.ROLE: "revision"})
            ),
        ]
        if revision.autoscaling is not None:
            made.append(self._autoscaler(name, revision.autoscaling, revision, self.metadata(name, labels)))
        if scaling.least_replicas(revision) >= 2:
            made.append(self._budget(revision, self.metadata(name, labels)))
        return made

    def _deployment(self, name: str, revision: WantedRevision, labels: dict[str, str]) -> Object:
        own = {identity.DEPLOYMENT: self._name, identity.REVISION: str(revision.number)}
        spec: Object = {
            "selector": {"matchLabels": own},
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": self._progress_deadline_s(),
            "strategy": self._strategy(),
            "template": pods.template(self._wanted, revision, self._labels | labels, self._settings),
        }
        if revision.autoscaling is None:
            if not 0 <= revision.replicas <= 1000:
                raise BackendError(
                    Trouble.REFUSED, f"{revision.replicas} is not within 0 and 1000", field="spec.replicas"
                )
            spec["replicas"] = revision.replicas
        metadata = self.metadata(name, labels)
        metadata["annotations"] |= {identity.VERSION: revision.bundle.version}
        return {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": DEPLOYMENT.name,
            "metadata": metadata,
            "spec": spec,
        }

    def _strategy(self) -> Object:
        if self._wanted.replacement == pb.REPLACEMENT_MODE_RECREATE:
            return {"type": "Recreate"}
        rollout = self._spec.rollout
        surge = rollout.max_surge if rollout.HasField("max_surge") else 1
        unavailable = rollout.max_unavailable
        if surge == 0 and unavailable == 0:
            unavailable = 1  # both at 0 could never move
        return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}

    def _progress_deadline_s(self) -> int:
        """A start may take its time before it counts as stuck."""
        startup = self._spec.startup_timeout.ToTimedelta().total_seconds()
        progress = self._spec.rollout.progress_deadline.ToTimedelta().total_seconds()
        return math.ceil(max(startup, progress, 60.0))

    def _autoscaler(
        self, name: str, autoscaling: pb.Autoscaling, revision: WantedRevision, metadata: Object
    ) -> Object:
        if not scaling.scales_to_zero(revision):
            return scaling.autoscaler(name, autoscaling, metadata)
        if obstacle := obstacle_to_zero(self._wanted, self._settings, self._cluster):
            raise BackendError(Trouble.REFUSED, obstacle, field="spec.autoscaling.min_replicas")
        return scaling.scaled_object(name, self._name, self._namespace, autoscaling, self._settings, metadata)

    def _budget(self, revision: WantedRevision, metadata: Object) -> Object:
        """Always lets at least one pod go, and any that is not ready: one that lets none go would block every
        drain of a node.
        """
        replicas = scaling.least_replicas(revision)
        own = {identity.DEPLOYMENT: self._name, identity.REVISION: str(revision.number)}
        spec: Object = {"selector": {"matchLabels": own}, "unhealthyPodEvictionPolicy": "AlwaysAllow"}
        if self._spec.kubernetes.HasField("min_available"):
            spec["minAvailable"] = min(self._spec.kubernetes.min_available, replicas - 1)
        else:
            spec["maxUnavailable"] = 1
        return {
            "apiVersion": DISRUPTION_BUDGET.api_version,
            "kind": DISRUPTION_BUDGET.name,
            "metadata": metadata,
            "spec": spec,
        }

    def _account(self) -> list[Object]:
        """The pods' identity. Its Role says in one place what they may do in the cluster: nothing."""
        subject = {"kind": SERVICE_ACCOUNT.name, "name": self._name, "namespace": self._namespace}
        role = {"apiGroup": ROLE.group, "kind": ROLE.name, "name": self._name}
        return [
            {
                "apiVersion": SERVICE_ACCOUNT.api_version,
                "kind": SERVICE_ACCOUNT.name,
                "metadata": self.metadata(self._name),
                "automountServiceAccountToken": False,
            },
            {
                "apiVersion": ROLE.api_version,
                "kind": ROLE.name,
                "metadata": self.metadata(self._name),
                "rules": [],
            },
            {
                "apiVersion": ROLE_BINDING.api_version,
                "kind": ROLE_BINDING.name,
                "metadata": self.metadata(self._name),
                "roleRef": role,
                "subjects": [subject],
            },
        ]

    def _callers(self) -> list[Object]:
        """Who may call the model, as a NetworkPolicy says it: namespaces, and every router in this one, be it
        this deployment's own, or that of one whose backup it is.
        """
        settings = self._settings
        allowed = [*self._spec.kubernetes.client_namespaces] or [self._namespace, settings.own_namespace]
        allowed += [settings.own_namespace, settings.gateway.partition("/")[0]]
        if is_monitored(self._spec):
            allowed.append(settings.monitoring_namespace)
        is_router = {"key": identity.ROUTER, "operator": "Exists"}
        return [
            *(
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
                for name in sorted({name for name in allowed if name})
            ),
            {"podSelector": {"matchExpressions": [is_router]}},
        ]

    def _network_policy(self) -> Object:
        settings = self._settings
        port = [{"port": containers.PORT, "protocol": "TCP"}]
        egress: list[Object] = [
            traffic.to_dns(),
            {"ports": [{"port": settings.registry_port, "protocol": "TCP"}]},
        ]
        if pods.needs_hub(self._wanted, settings):
            egress.append({"ports": [{"port": settings.hub_port, "protocol": "TCP"}]})
        return {
            "apiVersion": NETWORK_POLICY.api_version,
            "kind": NETWORK_POLICY.name,
            "metadata": self.metadata(self._name),
            "spec": {
                "podSelector": {"matchLabels": {identity.DEPLOYMENT: self._name}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": self._callers(), "ports": port}],
                "egress": egress,
            },
        }

    def _monitors(self) -> list[Object]:
        made = []
        if SERVICE_MONITOR in self._cluster.kinds:
            made.append(monitoring.service_monitor(self._name, self.metadata(self._name)))
        if PROMETHEUS_RULE in self._cluster.kinds:
            model_id = self._wanted.key.model_id
            metadata = self.metadata(self._name)
            made.append(
                monitoring.prometheus_rule(self._name, self._namespace, self._spec, model_id, metadata)
            )
        return made
