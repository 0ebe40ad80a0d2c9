"""`neuroweaver deploy watch` and `logs`: what happens to a deployment."""

from __future__ import annotations

from typing import Annotated

from rich.text import Text
from typer import Option

from neuroweaver.cli.arguments.references import Name
from neuroweaver.cli.deploy.follow import watch_until_gone
from neuroweaver.cli.deploy.names import DeploymentName, present
from neuroweaver.cli.terminal.failures import talking_to
from neuroweaver.cli.terminal.names import LEVEL_STYLES
from neuroweaver.cli.terminal.output import AsJson, console, print_event, when
from neuroweaver.client.text import plain
from neuroweaver.v1 import deployer_pb2 as pb


def watch(
    model: Name,
    *,
    name: DeploymentName = "",
    since: Annotated[
        int | None, Option(min=0, help="Only events after this sequence; 0: all.", show_default="from now on")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what happens to a deployment until it is removed: rollouts, cold starts, switches.

    A broken connection is resumed without a gap. With --json, one line of JSON per event.

    Example: neuroweaver deploy watch advisor --since 0 --json
    """
    with talking_to("deployer") as client:
        deployment = present(client, model, name)
        first = deployment.last_sequence if since is None else since
        watch_until_gone(client, deployment, first, as_json=as_json)


def logs(
    model: Name,
    *,
    name: DeploymentName = "",
    follow: Annotated[bool, Option("--follow", "-f", help="Wait for new lines.")] = False,
    replica: Annotated[str, Option(help="Only this replica.")] = "",
    revision: Annotated[int | None, Option(min=0, help="Only replicas of this revision.")] = None,
    tail: Annotated[int | None, Option(min=0, max=100_000, help="Only the last so many lines.")] = None,
    since: Annotated[int, Option(min=0, help="Only lines after this sequence.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print the logs of a deployment's replicas. With --json, one line of JSON per log line.

    Example: neuroweaver deploy logs advisor --follow --tail 100
    """
    request = pb.WatchDeploymentLogsRequest(
        model_id=model,
        name=name,
        since_sequence=since,
        replica_id=replica,
        revision=revision or 0,
        tail_lines=tail or 0,
        follow=follow,
    )
    screen = console()
    with talking_to("deployer") as client:
        for line in client.watch_deployment_logs(request):
            if as_json:
                print_event(line)
                continue
            text = Text.assemble(
                (when(line.time), "dim"), " ", (plain(line.replica_id), "cyan"), f" {line.level:<7} "
            )
            screen.print(text.append(plain(line.message), LEVEL_STYLES.get(line.level, "")), soft_wrap=True)
