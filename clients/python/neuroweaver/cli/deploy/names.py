"""How a command names a deployment, and what commands on one share."""

from __future__ import annotations

from typing import Annotated, Final

from typer import Argument, Option

from neuroweaver.client.connection import Client
from neuroweaver.v1 import deployer_pb2 as pb

Target = Annotated[
    str,
    Argument(
        metavar="MODEL[@VERSION]",
        help="1.2.0 stays at that version; an alias such as production is followed when it moves.",
    ),
]
DeploymentName = Annotated[str, Option("--name", "-n", help="The deployment's name. Default: default.")]
Watch = Annotated[bool, Option("--watch", "-w", help="Show what happens until the change is complete.")]
Timeout = Annotated[
    str,
    Option(
        metavar="DURATION",
        help="Watch at most this long, then exit with 124; the deployment continues. Such as 90s or 1h30m; "
        "0: no limit. Default: 15m, plus the bake times of a canary.",
    ),
]

DEFAULT: Final = "default"


def watch_command(deployment: pb.Deployment) -> str:
    """What a user types to see what happens next."""
    name = f" --name {deployment.name}" if deployment.name not in {"", DEFAULT} else ""
    return f"neuroweaver deploy watch {deployment.model_id}{name}"


def present(client: Client, model: str, name: str) -> pb.Deployment:
    """The deployment as it is now. Raises grpc.RpcError, NOT_FOUND among others."""
    return client.deployer.GetDeployment(pb.GetDeploymentRequest(model_id=model, name=name))
