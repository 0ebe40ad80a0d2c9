"""What the cluster backend is told by its environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from neuroweaver.cluster.connection import Access
from neuroweaver.mesh.wire.environment import SettingsError

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_SUBDOMAIN: Final = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*", re.ASCII)
_IMAGE: Final = re.compile(r"[a-z0-9]([A-Za-z0-9._/:-]*[A-Za-z0-9])?(@sha256:[0-9a-f]{64})?", re.ASCII)
_ADDRESS: Final = re.compile(r"[A-Za-z0-9.-]+:(?P<port>[0-9]{1,5})", re.ASCII)
_URL: Final = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?", re.ASCII)
_OWN_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """namespace: where deployments go that name none. own_namespace: of the deployer's pods; empty outside
    a cluster.

    fetch_image: of the services; its init container fetches and verifies the artifacts. server_image,
    vllm_image: of the model server, without and with GPUs, for a spec that names none. registry_address: as
    pods reach it.

    base_claim: a PersistentVolumeClaim in the deployment's namespace with base models as folders
    `organisation/name`. Empty: pods with GPUs fetch the base model from the Hugging Face hub, or from the one
    at hub_url, which gives files at the same port. hub_token_secret: a Secret in the deployment's namespace
    whose `token` is shown to the hub.

    gateway: `namespace/name` of a Gateway that HTTPRoutes attach to; gateway_url: where it listens. Empty:
    traffic is split by the numbers of replicas.

    prometheus_url, activation_query: how KEDA learns of a first request to a deployment without replicas,
    which no metric of its own pods can tell; `{deployment}` stands for the resource name. Without a query it
    is told by the requests that wait in the deployment's router.

    has_cluster_autoscaler: nodes come when pods wait for them, so that a lack of room blocks nothing.
    """

    access: Access = field(default_factory=Access)
    namespace: str = "default"
    own_namespace: str = ""
    fetch_image: str = "neuroweaver/services:0.1.0"
    server_image: str = "neuroweaver/model-server:0.1.0"
    vllm_image: str = "vllm/vllm-openai:v0.11.0"
    registry_address: str = "registry.neuroweaver.svc:50051"
    base_claim: str = ""
    hub_url: str = ""
    hub_token_secret: str = ""
    monitoring_namespace: str = "monitoring"
    gateway: str = ""
    gateway_url: str = ""
    prometheus_url: str = ""
    activation_query: str = ""
    has_cluster_autoscaler: bool = False

    @property
    def registry_port(self) -> int:
        return int(self.registry_address.rpartition(":")[2])

    @property
    def hub_port(self) -> int:
        address = urlsplit(self.hub_url)
        return address.port or (80 if address.scheme == "http" else 443)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> ClusterSettings:
        """Raises SettingsError naming the first variable that is wrong."""
        read = _Reader(os.environ if environ is None else environ)
        default = cls()
        own = _OWN_NAMESPACE.read_text().strip() if _OWN_NAMESPACE.is_file() else ""
        kubeconfig = read.text("KUBECONFIG", "")
        return cls(
            access=Access(
                kubeconfig=Path(kubeconfig) if kubeconfig else None,
                context=read.text("KUBERNETES_CONTEXT", ""),
            ),
            namespace=read.matching("KUBERNETES_NAMESPACE", own or "default", _LABEL, "a DNS label"),
            own_namespace=own,
            fetch_image=read.matching("NEUROWEAVER_FETCH_IMAGE", default.fetch_image, _IMAGE, "an image"),
            server_image=read.matching("NEUROWEAVER_SERVER_IMAGE", default.server_image, _IMAGE, "an image"),
            vllm_image=read.matching("NEUROWEAVER_VLLM_IMAGE", default.vllm_image, _IMAGE, "an image"),
            registry_address=read.matching(
                "NEUROWEAVER_CLUSTER_REGISTRY_ADDRESS", default.registry_address, _ADDRESS, "host:port"
            ),
            base_claim=read.matching("NEUROWEAVER_BASE_MODELS_CLAIM", "", _LABEL, "a DNS label"),
            hub_url=read.url("NEUROWEAVER_HUB_URL").rstrip("/"),
            hub_token_secret=read.matching("NEUROWEAVER_HUB_TOKEN_SECRET", "", _SUBDOMAIN, "a Secret's name"),
            monitoring_namespace=read.matching(
                "NEUROWEAVER_MONITORING_NAMESPACE", default.monitoring_namespace, _LABEL, "a DNS label"
            ),
            gateway=read.matching(
                "NEUROWEAVER_GATEWAY", "", re.compile(f"{_LABEL.pattern}/{_LABEL.pattern}"), "namespace/name"
            ),
            gateway_url=read.url("NEUROWEAVER_GATEWAY_URL"),
            prometheus_url=read.url("NEUROWEAVER_PROMETHEUS_URL"),
            activation_query=read.text("NEUROWEAVER_ACTIVATION_QUERY", ""),
            has_cluster_autoscaler=read.switch("NEUROWEAVER_CLUSTER_AUTOSCALER"),
        )


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str, default: str) -> str:
        return self._environ.get(name, "").strip() or default

    def matching(self, name: str, default: str, pattern: re.Pattern[str], what: str) -> str:
        value = self.text(name, default)
        if value and not pattern.fullmatch(value):
            raise SettingsError(f"{name}={value} is not {what}")
        return value

    def url(self, name: str) -> str:
        value = self.matching(name, "", _URL, "a URL")
        try:
            urlsplit(value).port  # noqa: B018  # reading it is the check
        except ValueError as error:
            raise SettingsError(f"{name}={value} is not a URL: {error}") from error
        return value

    def switch(self, name: str) -> bool:
        value = self.text(name, "false").lower()
        if value not in {"true", "false"}:
            raise SettingsError(f"{name}={value} is neither true nor false")
        return value == "true"
