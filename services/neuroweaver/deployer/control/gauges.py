"""What Prometheus reads of deployments, for alerts."""

from __future__ import annotations

from typing import Final

from prometheus_client import Gauge

from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.v1 import deployer_pb2 as pb

_ACCURACY: Final = Gauge(
    "neuroweaver_deployment_accuracy",
    "Accuracy reported over the window of the deployment's thresholds; absent while too few requests tell.",
    ("deployment",),
)


def show(deployment: Deployment) -> None:
    """As of the last look at it."""
    health = None if deployment.is_gone else deployment.status.health
    states = health.thresholds if health else ()
    accuracy = next((state.value for state in states if state.kind == pb.THRESHOLD_KIND_ACCURACY), None)
    if accuracy is None:
        _ACCURACY.remove(deployment.resource_name)
    else:
        _ACCURACY.labels(deployment.resource_name).set(accuracy)


def hide_all() -> None:
    """Once another deployer leads: what this one saw last grows old."""
    _ACCURACY.clear()
