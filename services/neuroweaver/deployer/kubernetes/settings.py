"""What the environment says of the cluster."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from neuroweaver.cluster.connection import Access
from neuroweaver.mesh.server.http_limits import HttpLimits
from neuroweaver.mesh.wire.environment import address, matching, read, switch, text, variable

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_SUBDOMAIN: Final = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*", re.ASCII)
_GATEWAY: Final = re.compile(rf"{_LABEL.pattern}/{_LABEL.pattern}", re.ASCII)
_IMAGE: Final = re.compile(r"[a-z0-9]([A-Za-z0-9._/:-]*[A-Za-z0-9])?(@sha256:[0-9a-f]{64})?", re.ASCII)
_URL: Final = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?", re.ASCII)
_OWN_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_label = matching(_LABEL, "a DNS label")
_image = matching(_IMAGE, "an image")


def _url(value: str) -> str:
    matching(_URL, "a URL that begins with http:// or https://")(value)
    try:
        urlsplit(value).port  # noqa: B018  # reading it is the check
    except ValueError:
        raise ValueError("a URL: its port is out of range") from None
    return value.rstrip("/")


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """own_namespace: of the deployer's pod; empty outside a cluster. http_limits: of what runs in pods."""

    own_namespace: str = ""
    http_limits: HttpLimits = field(default_factory=HttpLimits)
    kubeconfig: Path | None = variable(
        "KUBECONFIG",
        Path,
        None,
        shown_default="~/.kube/config; inside a pod its ServiceAccount",
        help="Which cluster, and as whom.",
    )
    context: str = variable(
        "KUBERNETES_CONTEXT", text, "", shown_default="the current one", help="The context in KUBECONFIG."
    )
    namespace: str = variable(
        "KUBERNETES_NAMESPACE",
        _label,
        "default",
        shown_default="inside a pod its own, else `default`",
        help="Where a deployment runs that names no namespace.",
    )
    fetch_image: str = variable(
        "NEUROWEAVER_FETCH_IMAGE",
        _image,
        "neuroweaver/services:0.1.0",
        help="The image of the services, which fetches and verifies artifacts, and runs routers.",
    )
    server_image: str = variable(
        "NEUROWEAVER_SERVER_IMAGE",
        _image,
        "neuroweaver/model-server:0.1.0",
        help="The model server's image for deployments without GPUs that name none.",
    )
    vllm_image: str = variable(
        "NEUROWEAVER_VLLM_IMAGE",
        _image,
        "vllm/vllm-openai:v0.11.0",
        help="The model server's image for deployments with GPUs that name none.",
    )
    registry_address: str = variable(
        "NEUROWEAVER_CLUSTER_REGISTRY_ADDRESS",
        address,
        "registry.neuroweaver.svc:50051",
        help="The Registry as pods reach it.",
    )
    base_claim: str = variable(
        "NEUROWEAVER_BASE_MODELS_CLAIM",
        _label,
        "",
        help="A PersistentVolumeClaim in the deployment's namespace, with base models as folders "
        "`organisation/name`. Empty: pods fetch them from the Hugging Face hub.",
    )
    hub_url: str = variable(
        "NEUROWEAVER_HUB_URL",
        _url,
        "",
        help="A mirror of the Hugging Face hub, which serves its files from the same port.",
    )
    hub_token_secret: str = variable(
        "NEUROWEAVER_HUB_TOKEN_SECRET",
        matching(_SUBDOMAIN, "a Secret's name"),
        "",
        help="A Secret in the deployment's namespace, whose `token` is shown to the hub.",
    )
    monitoring_namespace: str = variable(
        "NEUROWEAVER_MONITORING_NAMESPACE", _label, "monitoring", help="Prometheus's namespace."
    )
    gateway: str = variable(
        "NEUROWEAVER_GATEWAY",
        matching(_GATEWAY, "namespace/name"),
        "",
        help="The Gateway that HTTPRoutes attach to. Empty: traffic is split by numbers of replicas.",
    )
    gateway_url: str = variable("NEUROWEAVER_GATEWAY_URL", _url, "", help="Where the Gateway listens.")
    prometheus_url: str = variable(
        "NEUROWEAVER_PROMETHEUS_URL", _url, "", help="Where KEDA asks, to scale to zero and back."
    )
    activation_query: str = variable(
        "NEUROWEAVER_ACTIVATION_QUERY",
        text,
        "",
        shown_default="requests waiting in the deployment's router",
        help="How KEDA learns of a first request to a deployment without replicas; `{deployment}` stands for "
        "the resource name.",
    )
    has_cluster_autoscaler: bool = variable(
        "NEUROWEAVER_CLUSTER_AUTOSCALER",
        switch,
        default=False,
        help="Nodes come when pods wait for them: a lack of room blocks nothing.",
    )

    @property
    def access(self) -> Access:
        return Access(self.kubeconfig, self.context)

    @property
    def registry_port(self) -> int:
        return int(self.registry_address.rpartition(":")[2])

    @property
    def hub_port(self) -> int:
        hub = urlsplit(self.hub_url)
        return hub.port or (80 if hub.scheme == "http" else 443)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> ClusterSettings:
        """Raises SettingsError naming the first variable that is wrong."""
        environ = os.environ if environ is None else environ
        own = _OWN_NAMESPACE.read_text().strip() if _OWN_NAMESPACE.is_file() else ""
        given: dict[str, Any] = {"own_namespace": own, "http_limits": read(HttpLimits, environ)}
        if own and not environ.get("KUBERNETES_NAMESPACE", "").strip():
            given["namespace"] = own
        return read(cls, environ, **given)
