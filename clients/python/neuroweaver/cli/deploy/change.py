"""`neuroweaver deploy scale|rollback|delete`: changes of a deployment that need no plan."""

from __future__ import annotations

from typing import Annotated

from rich.text import Text
from typer import Argument, Option

from neuroweaver.cli.arguments.references import Name, Reason
from neuroweaver.cli.deploy import view
from neuroweaver.cli.deploy.events import UNDER_WAY, revision, title, way_back
from neuroweaver.cli.deploy.follow import finish, patience, print_changed, watch_until_gone
from neuroweaver.cli.deploy.names import DeploymentName, Timeout, Watch, present
from neuroweaver.cli.terminal.confirm import Yes, asking
from neuroweaver.cli.terminal.failures import BadInput, talking_to
from neuroweaver.cli.terminal.output import AsJson, print_view, when
from neuroweaver.client.text import plain
from neuroweaver.v1 import deployer_pb2 as pb


def scale(
    model: Name,
    replicas: Annotated[
        int | None, Argument(metavar="[REPLICAS]", min=0, help="A fixed number; turns autoscaling off.")
    ] = None,
    *,
    name: DeploymentName = "",
    fewest: Annotated[int | None, Option("--min", min=0, help="Autoscaling: fewest replicas.")] = None,
    most: Annotated[int | None, Option("--max", min=1, help="Autoscaling: most replicas.")] = None,
    reason: Reason = "",
    watch: Watch = False,
    timeout: Timeout = "",
    as_json: AsJson = False,
) -> None:
    """Set the number of replicas, or the bounds of autoscaling, without a rollout.

    Bounds and targets that are not given stay as they are.

    Examples: neuroweaver deploy scale advisor 3, neuroweaver deploy scale advisor --min 1 --max 8
    """
    if (replicas is None) == (fewest is None and most is None):
        raise BadInput("give a number of replicas, or --min and --max", "REPLICAS")
    within_s = patience(timeout)
    with talking_to("deployer") as client:
        before = present(client, model, name)
        request = pb.ScaleDeploymentRequest(model_id=model, name=name, reason=reason, etag=before.etag)
        if replicas is not None:
            request.replicas = replicas
        else:
            request.autoscaling.CopyFrom(_bounds(before.spec, fewest, most))
        scaled = client.deployer.ScaleDeployment(request)
        finish(client, scaled, before, watch=watch, within_s=within_s, as_json=as_json)


def rollback(
    model: Name,
    *,
    name: DeploymentName = "",
    to: Annotated[
        int | None, Option("--to", metavar="REVISION", min=0, help="The revision to go back to.")
    ] = None,
    reason: Reason = "",
    watch: Watch = False,
    timeout: Timeout = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Go back to an earlier revision; shows which, and asks.

    By default the stable one during a rollout, else the last proven one before it. Works even if the stable
    one is broken.

    Example: neuroweaver deploy rollback advisor -m "answers got longer" --watch
    """
    ask = asking(yes=yes, as_json=as_json)
    within_s = patience(timeout)
    with talking_to("deployer") as client:
        before = present(client, model, name)
        if not as_json:
            print_view(_way(before, to or 0))
        ask(f"Roll {title(model, name)} back?")
        request = pb.RollbackDeploymentRequest(
            model_id=model, name=name, revision=to or 0, reason=reason, etag=before.etag
        )
        back = client.deployer.RollbackDeployment(request)
        finish(client, back, before, watch=watch, within_s=within_s, as_json=as_json)


def delete(
    model: Name,
    *,
    name: DeploymentName = "",
    force: Annotated[bool, Option("--force", help="Even if it is the backup of another deployment.")] = False,
    reason: Reason = "",
    watch: Annotated[bool, Option("--watch", "-w", help="Show what happens until it is removed.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Drain a deployment and remove everything that belongs to it; the model's versions stay.

    Example: neuroweaver deploy delete advisor --name staging --yes
    """
    ask = asking(yes=yes, as_json=as_json)
    with talking_to("deployer") as client:
        before = present(client, model, name)
        if not as_json:
            print_view(view.head(before))
        ask(f"Remove the deployment {title(model, name)}?")
        request = pb.UndeployModelRequest(
            model_id=model, name=name, force=force, reason=reason, etag=before.etag
        )
        removed = client.deployer.UndeployModel(request)
        if watch:
            watch_until_gone(client, removed, removed.last_sequence, as_json=as_json)
        else:
            print_changed(removed, as_json=as_json)


def _bounds(spec: pb.DeploymentSpec, fewest: int | None, most: int | None) -> pb.Autoscaling:
    """The present autoscaling with other bounds, or a new one. Raises BadInput."""
    scaling = pb.Autoscaling()
    scaling.CopyFrom(spec.autoscaling)
    if fewest is not None:
        scaling.min_replicas = fewest
        if fewest:
            scaling.ClearField("idle_timeout")
    if most is not None:
        scaling.max_replicas = most
    if not scaling.max_replicas:
        raise BadInput("is required where there was no autoscaling before", "--max")
    return scaling


def _way(deployment: pb.Deployment, to: int) -> Text:
    """From where to where a rollback goes, as far as it is known here."""
    target = revision(deployment, to) if to else way_back(deployment)
    rollout, alias = deployment.rollout, plain(deployment.spec.alias)
    is_rolling = rollout.state in UNDER_WAY
    here = revision(deployment, rollout.candidate_revision if is_rolling else deployment.stable_revision)
    destination = _described(target) if target else Text("not known here", "yellow")
    text = Text.assemble("from  ", _described(here), "\nto    ", destination)
    if is_rolling:
        weight = rollout.candidate_weight_percent
        text.append(f"\nThe current rollout ends; its {weight} % of the traffic goes back.")
    if alias:
        text.append(f"\nIt stops following {alias} until the next `deploy apply` with it.", "yellow")
    return text


def _described(shown: pb.DeploymentRevision | None) -> Text:
    if shown is None:
        return Text("nothing that serves", "dim")
    proven = "proven" if shown.is_proven else "not proven"
    return Text.assemble(
        (f"revision {shown.number}", "cyan"),
        f"  {plain(shown.version)}",
        (f"  {proven}, created {when(shown.create_time)}", "dim"),
    )
