"""One deployment's desired state and where it is to be: what each of its objects needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from neuroweaver.cluster.api import FIELD_MANAGER
from neuroweaver.cluster.kinds import Kind, Object
from neuroweaver.deployer.domain.backend import DesiredState
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.v1 import deployer_pb2 as pb


def namespace_of(spec: pb.DeploymentSpec, settings: ClusterSettings) -> str:
    return spec.kubernetes.namespace or settings.namespace


@dataclass(frozen=True)
class Scope:
    wanted: DesiredState
    settings: ClusterSettings

    @property
    def name(self) -> str:
        return self.wanted.resource_name

    @property
    def spec(self) -> pb.DeploymentSpec:
        return self.wanted.spec

    @property
    def namespace(self) -> str:
        return namespace_of(self.spec, self.settings)

    @property
    def is_monitored(self) -> bool:
        options = self.spec.kubernetes
        return options.monitoring or not options.HasField("monitoring")

    @cached_property
    def labels(self) -> dict[str, str]:
        """Of all objects. Raises BackendError for a user's label that is none."""
        return {
            **identity.checked_labels(self.spec.labels),
            "app.kubernetes.io/name": "model-server",
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/part-of": "neuroweaver",
            identity.MANAGED_BY: FIELD_MANAGER,
            identity.DEPLOYMENT: self.name,
        }

    def selector(self, number: int) -> dict[str, str]:
        """The labels of a revision's pods, and of no others."""
        return {identity.DEPLOYMENT: self.name, identity.REVISION: str(number)}

    def object(
        self, kind: Kind, name: str = "", labels: Mapping[str, str] | None = None, **fields: Any
    ) -> Object:
        """name: the deployment's if it is empty. labels: beside those of all."""
        metadata = {
            "name": name or self.name,
            "namespace": self.namespace,
            "labels": self.labels | dict(labels or {}),
            "annotations": {identity.KEY: identity.key_annotation(self.wanted.key)},
        }
        return kind.object(metadata, **fields)

    def of_revision(self, kind: Kind, number: int, role: str = "", **fields: Any) -> Object:
        labels = {identity.REVISION: str(number)} | ({identity.ROLE: role} if role else {})
        return self.object(kind, identity.of_revision(self.name, number), labels, **fields)
