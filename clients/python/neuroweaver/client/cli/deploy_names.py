"""How a command names a deployment."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from neuroweaver.client.connection import Client
from neuroweaver.v1 import deployer_pb2 as pb

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.", show_default=False)]
Target = Annotated[
    str,
    typer.Argument(
        metavar="MODEL[@VERSION]",
        help="1.2.0 is that version; an alias as production is followed wherever it moves.",
        show_default=False,
    ),
]
DeploymentName = Annotated[
    str,
    typer.Option(
        "--name", "-n", help="Which of the model's deployments. Default: default.", show_default=False
    ),
]
Watch = Annotated[
    bool, typer.Option("--watch", "-w", help="Show what happens until it is as it was asked for.")
]

Timeout = Annotated[
    str,
    typer.Option(
        metavar="SPAN",
        help="The longest to watch, as 90s or 1h30m; then it ends with 124, and the deployment goes on. "
        "0: no limit. Default: 15m, and the bake times of a canary.",
        show_default=False,
    ),
]

DEFAULT: Final = "default"


def watch_command(deployment: pb.Deployment) -> str:
    """What a user types to see how it goes on."""
    name = f" --name {deployment.name}" if deployment.name not in {"", DEFAULT} else ""
    return f"neuroweaver deploy watch {deployment.model_id}{name}"


def found(client: Client, model: str, name: str) -> pb.Deployment:
    """The deployment. Raises grpc.RpcError, NOT_FOUND among others."""
    return client.deployer.GetDeployment(pb.GetDeploymentRequest(model_id=model, name=name))
