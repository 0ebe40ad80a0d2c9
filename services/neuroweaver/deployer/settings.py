"""What the Deployer's environment says."""

from __future__ import annotations

from dataclasses import dataclass

from neuroweaver.mesh.wire.environment import declared
from neuroweaver.mesh.wire.settings import DEPLOYMENT_BACKEND, SERVING_PORT, Settings


@dataclass(frozen=True, kw_only=True)
class DeployerSettings(Settings):
    service: str = "deployer"
    deployment_backend: str = declared(DEPLOYMENT_BACKEND)
    serving_port: int = declared(SERVING_PORT)
