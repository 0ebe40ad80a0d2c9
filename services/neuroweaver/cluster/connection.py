"""Which cluster, and as whom: from a kubeconfig, or from inside a pod."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes.aio import client, config
from kubernetes.aio.config import ConfigException

from neuroweaver.cluster.errors import BackendError, Trouble

_IN_CLUSTER: Final = "KUBERNETES_SERVICE_HOST"
_DEFAULT_FILE: Final = "~/.kube/config"


@dataclass(frozen=True)
class Access:
    """kubeconfig: a file; None: that of KUBECONFIG or the home folder, or inside a pod its ServiceAccount.

    context: of the kubeconfig; empty: its current one.
    """

    kubeconfig: Path | None = None
    context: str = ""

    @property
    def is_inside(self) -> bool:
        """Whether pods can be reached without the API server's help."""
        return self.kubeconfig is None and not os.environ.get("KUBECONFIG") and _IN_CLUSTER in os.environ


async def configuration(access: Access) -> Any:
    """The official client's configuration. Raises BackendError NOT_CONFIGURED, saying what is wrong."""
    made = client.Configuration()
    # The calls have their own repeats, which know what is worth one.
    made.retries = None
    made.client_side_validation = False
    if access.is_inside:
        try:
            config.load_incluster_config(client_configuration=made)  # type: ignore[no-untyped-call]
        except ConfigException as error:
            raise BackendError(Trouble.NOT_CONFIGURED, f"the pod's ServiceAccount: {error}") from error
        return made
    file = _file(access)
    try:
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=str(file), context=access.context or None, client_configuration=made
        )
    except (
        ConfigException,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        yaml.YAMLError,
    ) as error:
        raise BackendError(Trouble.NOT_CONFIGURED, f"the kubeconfig {file}: {error}") from error
    return made


def _file(access: Access) -> Path:
    told = access.kubeconfig or Path(os.environ.get("KUBECONFIG") or _DEFAULT_FILE)
    # Several files joined by colons are the client's business.
    files = [Path(part).expanduser() for part in str(told).split(os.pathsep) if part]
    if not any(file.is_file() for file in files):
        raise BackendError(Trouble.NOT_CONFIGURED, f"there is no kubeconfig at {told}, and this is no pod")
    return Path(os.pathsep.join(map(str, files)))
