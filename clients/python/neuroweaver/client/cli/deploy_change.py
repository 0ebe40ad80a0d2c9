"""`neuroweaver deploy scale|rollback|delete`: changes of a deployment that need no plan."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from neuroweaver.client.cli import deploy_view
from neuroweaver.client.cli.confirm import Yes, confirm, refuse_unasked
from neuroweaver.client.cli.deploy_follow import follow, follow_to_the_end, patience
from neuroweaver.client.cli.deploy_names import DeploymentName, Model, Timeout, Watch, found, watch_command
from neuroweaver.client.cli.failures import EPILOG, BadInput, talking_to
from neuroweaver.client.cli.output import AsJson, console, print_json, to_json, when
from neuroweaver.client.cli.references import Reason
from neuroweaver.client.deployments import UNDER_WAY, revision, title, way_back
from neuroweaver.client.text import plain
from neuroweaver.mesh.ids import new_id
from neuroweaver.v1 import deployer_pb2 as pb


def scale(
    model: Model,
    replicas: Annotated[
        int | None,
        typer.Argument(
            metavar="[REPLICAS]", min=0, help="A fixed number; ends autoscaling.", show_default=False
        ),
    ] = None,
    *,
    name: DeploymentName = "",
    fewest: Annotated[
        int | None, typer.Option("--min", min=0, help="Fewest replicas, by load.", show_default=False)
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", min=1, help="Most replicas, by load.", show_default=False)
    ] = None,
    reason: Reason = "",
    watch: Watch = False,
    timeout: Timeout = "",
    as_json: AsJson = False,
) -> None:
    """Set the number of replicas, or the bounds of autoscaling; no rollout begins.

    Bounds that are not given stay as they are, targets too.

    Examples: neuroweaver deploy scale advisor 3, neuroweaver deploy scale advisor --min 1 --max 8
    """
    if (replicas is None) == (fewest is None and most is None):
        raise BadInput("give a number of replicas, or --min and --max", "REPLICAS")
    within_s = patience(timeout)
    with talking_to("deployer") as client:
        present = found(client, model, name)
        request = pb.ScaleDeploymentRequest(
            model_id=model, name=name, reason=reason, etag=present.etag, request_id=new_id()
        )
        if replicas is not None:
            request.replicas = replicas
        else:
            request.autoscaling.CopyFrom(_bounds(present.spec, fewest, most))
        scaled = client.deployer.ScaleDeployment(request)
        if watch:
            follow(client, scaled, before=_newest(present), within_s=within_s(scaled), as_json=as_json)
        else:
            tell(scaled, as_json=as_json)


def rollback(
    model: Model,
    *,
    name: DeploymentName = "",
    to: Annotated[
        int,
        typer.Option(
            "--to",
            metavar="REVISION",
            min=0,
            help="Default: the stable one during a rollout, else the last proven one before it.",
            show_default=False,
        ),
    ] = 0,
    reason: Reason = "",
    watch: Watch = False,
    timeout: Timeout = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Go back to an earlier revision; shows which, and asks. It also works when the stable one is broken.

    Example: neuroweaver deploy rollback advisor -m "answers got longer" --watch
    """
    refuse_unasked(yes=yes, as_json=as_json)
    within_s = patience(timeout)
    with talking_to("deployer") as client:
        present = found(client, model, name)
        if not as_json:
            console().print(_way(present, to))
        confirm(f"Roll {title(model, name)} back?", yes=yes, as_json=as_json)
        request = pb.RollbackDeploymentRequest(
            model_id=model, name=name, revision=to, reason=reason, etag=present.etag, request_id=new_id()
        )
        back = client.deployer.RollbackDeployment(request)
        if watch:
            follow(client, back, before=_newest(present), within_s=within_s(back), as_json=as_json)
        else:
            tell(back, as_json=as_json)


def delete(
    model: Model,
    *,
    name: DeploymentName = "",
    force: Annotated[
        bool, typer.Option("--force", help="Even if it is the backup of another deployment.")
    ] = False,
    reason: Reason = "",
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show what happens until nothing is left.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Drain a deployment and remove everything that belongs to it; the model's versions stay.

    Example: neuroweaver deploy delete advisor --name staging --yes
    """
    refuse_unasked(yes=yes, as_json=as_json)
    with talking_to("deployer") as client:
        present = found(client, model, name)
        if not as_json:
            console().print(deploy_view.head(present))
        confirm(f"Remove the deployment {title(model, name)}?", yes=yes, as_json=as_json)
        request = pb.UndeployModelRequest(
            model_id=model, name=name, force=force, reason=reason, etag=present.etag, request_id=new_id()
        )
        removed = client.deployer.UndeployModel(request)
        if watch:
            follow_to_the_end(client, removed, as_json=as_json)
        else:
            tell(removed, as_json=as_json)


def register(app: typer.Typer) -> None:
    for command in (scale, rollback, delete):
        app.command(epilog=EPILOG)(command)


def tell(deployment: pb.Deployment, *, as_json: bool) -> None:
    """What a change answered: the deployment for programs, one line for people."""
    if as_json:
        print_json(to_json(deployment))
        return
    console().print(deploy_view.head(deployment), soft_wrap=True)
    if deployment.state not in {pb.DEPLOYMENT_STATE_READY, pb.DEPLOYMENT_STATE_DELETED}:
        console().print(Text(f"Watch it: {watch_command(deployment)}", "dim"), soft_wrap=True)


def _bounds(spec: pb.DeploymentSpec, fewest: int | None, most: int | None) -> pb.Autoscaling:
    """The autoscaling that is there with other bounds, or a new one. Raises BadInput."""
    scaling = pb.Autoscaling()
    scaling.CopyFrom(spec.autoscaling)
    if fewest is not None:
        scaling.min_replicas = fewest
        if fewest:
            scaling.ClearField("idle_timeout")
    if most is not None:
        scaling.max_replicas = most
    if not scaling.max_replicas:
        raise BadInput("is needed where there was no autoscaling before", "--max")
    return scaling


def _newest(deployment: pb.Deployment) -> int:
    return max((each.number for each in deployment.revisions), default=0)


def _way(deployment: pb.Deployment, to: int) -> Text:
    """From where to where a rollback goes, as far as it can be told from here."""
    target = revision(deployment, to) if to else way_back(deployment)
    rollout = deployment.rollout
    is_rolling = rollout.state in UNDER_WAY
    here = revision(deployment, rollout.candidate_revision if is_rolling else deployment.stable_revision)
    text = Text.assemble(
        "from  ", _told(here), "\nto    ", _told(target) if target else ("not known here", "yellow")
    )
    if is_rolling:
        text.append(
            f"\nThe rollout under way ends; {rollout.candidate_weight_percent} % of the traffic goes back."
        )
    if deployment.spec.alias:
        text.append(
            f"\nIt follows {plain(deployment.spec.alias)} no longer until `deploy apply` says so.", "yellow"
        )
    return text


def _told(found_revision: pb.DeploymentRevision | None) -> Text:
    if found_revision is None:
        return Text("nothing that serves", "dim")
    proven = "proven" if found_revision.is_proven else "not proven"
    return Text.assemble(
        (f"revision {found_revision.number}", "cyan"),
        f"  {plain(found_revision.version)}",
        (f"  {proven}, made {when(found_revision.create_time)}", "dim"),
    )
