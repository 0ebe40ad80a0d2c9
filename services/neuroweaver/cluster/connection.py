"""Which cluster, and as whom: from a kubeconfig, or from inside a pod."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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

    def file(self) -> Path | None:
        """The kubeconfig; None for a pod's ServiceAccount. Raises BackendError NOT_CONFIGURED."""
        if self.is_inside:
            return None
        told = self.kubeconfig or Path(os.environ.get("KUBECONFIG") or _DEFAULT_FILE)
        # Several files joined by colons are the client's business.
        files = [Path(part).expanduser() for part in str(told).split(os.pathsep) if part]
        if not any(file.is_file() for file in files):
            raise BackendError(Trouble.NOT_CONFIGURED, f"no kubeconfig at {told}, and this is no pod")
        return Path(os.pathsep.join(map(str, files)))
