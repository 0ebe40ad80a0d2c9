"""`neuroweaver deploy watch` and `logs`: what happens to a deployment."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from rich.text import Text

from neuroweaver.client.cli.deploy_follow import watch_until_gone
from neuroweaver.client.cli.deploy_names import DeploymentName, Model, found
from neuroweaver.client.cli.failures import EPILOG, talking_to
from neuroweaver.client.cli.output import AsJson, console, print_json_line, to_json, when
from neuroweaver.client.text import plain
from neuroweaver.v1 import deployer_pb2 as pb

_STYLES: Final = {"WARNING": "yellow", "ERROR": "red", "DEBUG": "dim"}


def watch(
    model: Model,
    *,
    name: DeploymentName = "",
    since: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Only events after this sequence; 0 for all that are kept.",
            show_default="from now on",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what happens to a deployment until it is removed: rollouts, cold starts, switches.

    A broken connection is resumed, and nothing is missed. With --json, one line of JSON an event.

    Example: neuroweaver deploy watch advisor --since 0 --json
    """
    with talking_to("deployer") as client:
        deployment = found(client, model, name)
        first = deployment.last_sequence if since is None else since
        watch_until_gone(client, deployment, first, as_json=as_json)


def logs(
    model: Model,
    *,
    name: DeploymentName = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
    replica: Annotated[str, typer.Option(help="Only this replica.", show_default=False)] = "",
    revision: Annotated[
        int, typer.Option(min=0, help="Only replicas of this revision.", show_default=False)
    ] = 0,
    tail: Annotated[
        int, typer.Option(min=0, max=100_000, help="Only the last so many.", show_default=False)
    ] = 0,
    since: Annotated[int, typer.Option(min=0, help="Only lines after this sequence.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print the logs of a deployment's replicas. With --json, one line of JSON a log line.

    Example: neuroweaver deploy logs advisor --follow --tail 100
    """
    request = pb.WatchDeploymentLogsRequest(
        model_id=model,
        name=name,
        since_sequence=since,
        replica_id=replica,
        revision=revision,
        tail_lines=tail,
        follow=follow,
    )
    screen = console()
    with talking_to("deployer") as client:
        for line in client.watch_deployment_logs(request):
            if as_json:
                print_json_line(to_json(line))
                continue
            told = Text.assemble(
                (when(line.time), "dim"), " ", (plain(line.replica_id), "cyan"), f" {line.level:<7} "
            )
            screen.print(told.append(plain(line.message), _STYLES.get(line.level, "")), soft_wrap=True)


def register(app: typer.Typer) -> None:
    for command in (watch, logs):
        app.command(epilog=EPILOG)(command)
