"""Which deployment may take the traffic of another when somebody asks for it."""

from __future__ import annotations

from neuroweaver.deployer.domain import specification
from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.domain.defaults import NAME
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.mesh.wire.errors import FailedPrecondition
from neuroweaver.v1 import deployer_pb2 as pb


def target_of(deployment: Deployment, named: pb.BackupModel | None) -> Key:
    """The deployment that is named, else the backup.

    Raises FailedPrecondition without either, and for one that would know none of the requests: in a cluster
    nothing but a router rewrites their bodies, which name the model.
    """
    spec, key = deployment.spec, deployment.key
    if named is not None:
        target = Key(key.project, named.model_id, named.name or NAME)
    elif (backup := specification.backup_of(spec, key.project)) is not None:
        target = backup
    else:
        raise FailedPrecondition("NO_BACKUP", "the deployment has no backup model; name a target")
    is_in_cluster = spec.backend == pb.DEPLOYMENT_BACKEND_KUBERNETES
    is_rewriting = not is_in_cluster or specification.has_router(spec, key)
    if not is_rewriting and target.model_id != key.model_id:
        raise FailedPrecondition(
            "TARGET_OF_ANOTHER_MODEL",
            "without a router, traffic can only move to another deployment of the same model; to move it "
            "anywhere, set spec.kubernetes.traffic_routing to TRAFFIC_ROUTING_ROUTER",
        )
    return target


def require_ready(target: Key, deployment: Deployment | None, *, source: Key) -> None:
    """Raises FailedPrecondition for a target that could not answer, or that sends its own traffic on.

    deployment: the target's; None if there is none.
    """
    if deployment is None or deployment.is_gone:
        raise FailedPrecondition("TARGET_NOT_READY", f"{target} is not deployed")
    if not deployment.status.ready() or deployment.is_being_removed:
        raise FailedPrecondition("TARGET_NOT_READY", f"{target} has no ready replica; no traffic was moved")
    if target != source and deployment.switched_to is not None:
        raise FailedPrecondition("TARGET_SWITCHED", f"{target} sends its own traffic elsewhere")
