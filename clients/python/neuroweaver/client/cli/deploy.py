"""`neuroweaver deploy`: turn a model version into an endpoint, and look after it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from neuroweaver.client.cli import deploy_change, deploy_health, deploy_plan_view, deploy_view, deploy_watch
from neuroweaver.client.cli.confirm import Yes, confirm, refuse_unasked
from neuroweaver.client.cli.deploy_follow import follow, patience
from neuroweaver.client.cli.deploy_names import DeploymentName, Model, Target, Timeout, found
from neuroweaver.client.cli.deploy_spec import Fields, present_deployment, spec_of, with_spec_options
from neuroweaver.client.cli.failures import EPILOG, Exit, Failure, talking_to
from neuroweaver.client.cli.output import AsJson, console, print_json, print_table, to_json, when
from neuroweaver.client.cli.references import Reason, parsed
from neuroweaver.client.deployments import blocking, serving_version, title
from neuroweaver.mesh.ids import new_id
from neuroweaver.v1 import deployer_pb2 as pb

app = typer.Typer(
    help="Deployments: endpoints that serve a model, heal, scale and roll back.",
    no_args_is_help=False,
    epilog=EPILOG,
)


@app.command(epilog=EPILOG)
@with_spec_options
def plan(
    target: Target,
    *,
    spec: Path | None,
    changes: Fields,
    name: DeploymentName = "",
    manifests: Annotated[
        bool, typer.Option("--manifests", help="Print the objects as YAML, and nothing else.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what `deploy apply` would do, and change nothing; ends with 5 if it cannot be done.

    Example: neuroweaver deploy plan advisor@1.2.0 --replicas 2 --canary 10:5m,50:30m
    """
    version = parsed(target)
    with talking_to("deployer") as client:
        wanted = spec_of(version, spec, changes, present_deployment(client, version[0], name))
        made = client.deployer.PlanDeployment(
            pb.PlanDeploymentRequest(model_id=version[0], name=name, spec=wanted)
        )
    if as_json:
        print_json(to_json(made))
    elif manifests:
        typer.echo(deploy_plan_view.manifests(made), nl=False)
    else:
        console().print(deploy_plan_view.plan(made, version[0], name))
    if not made.is_feasible:
        raise typer.Exit(Exit.CONFLICT)


@app.command(epilog=EPILOG)
@with_spec_options
def apply(
    target: Target,
    *,
    spec: Path | None,
    changes: Fields,
    name: DeploymentName = "",
    watch: Annotated[
        bool, typer.Option("--watch/--no-watch", help="Show what happens until it is as it was asked for.")
    ] = True,
    timeout: Timeout = "",
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Deploy a model, or change a deployment: show the plan, ask, and show the progress until it is ready.

    Ends with 1 if it fails or is rolled back. Ctrl-C and --timeout end the watching, not the deployment. With
    --json, prints one line of JSON an event; with --no-watch, the deployment.

    Examples: neuroweaver deploy apply advisor@production --replicas 2 --yes --timeout 30m,
    neuroweaver deploy apply advisor -f advisor.yaml
    """
    refuse_unasked(yes=yes, as_json=as_json)
    within_s = patience(timeout)
    model, version = parsed(target)
    with talking_to("deployer") as client:
        present = present_deployment(client, model, name)
        wanted = spec_of((model, version), spec, changes, present)
        made = client.deployer.PlanDeployment(
            pb.PlanDeploymentRequest(model_id=model, name=name, spec=wanted)
        )
        if not as_json:
            console().print(deploy_plan_view.plan(made, model, name))
        _refuse_infeasible(made, model, name)
        confirm(f"Apply this to {title(model, name)}?", yes=yes, as_json=as_json)
        deployed = client.deployer.DeployModel(
            pb.DeployModelRequest(
                model_id=model,
                name=name,
                spec=wanted,
                plan_digest=made.digest,
                reason=reason,
                etag=present.etag if present else "",
                request_id=new_id(),
            )
        )
        if watch:
            before = max((each.number for each in present.revisions), default=0) if present else 0
            follow(client, deployed, before=before, within_s=within_s(deployed), as_json=as_json)
        else:
            deploy_change.tell(deployed, as_json=as_json)


@app.command("list", epilog=EPILOG)
def list_deployments(
    *,
    query: Annotated[
        str,
        typer.Option("--filter", help="Such as state=READY or labels.team=search.", show_default=False),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List the deployments.

    Example: neuroweaver deploy list --filter state=DEGRADED
    """
    with talking_to("deployer") as client:
        every = list(client.deployments(query))
    if as_json:
        print_json({"deployments": [to_json(each) for each in every]})
        return
    rows = (
        (
            Text(title(each.model_id, each.name), "cyan"),
            deploy_view.state_of(each.state),
            serving_version(each) or "-",
            f"{each.replicas.ready}/{each.replicas.desired}",
            when(each.update_time),
            each.endpoint,
        )
        for each in every
    )
    columns = ("DEPLOYMENT", "STATE", "VERSION", "READY", "CHANGED", "ENDPOINT")
    print_table(columns, rows, empty="No deployments.")


@app.command(epilog=EPILOG)
def status(model: Model, *, name: DeploymentName = "", as_json: AsJson = False) -> None:
    """Show a deployment: revisions and their traffic, replicas and their cold starts, conditions.

    Example: neuroweaver deploy status advisor
    """
    with talking_to("deployer") as client:
        deployment = found(client, model, name)
    if as_json:
        print_json(to_json(deployment))
    else:
        console().print(deploy_view.picture(deployment))


for part in (deploy_watch, deploy_change, deploy_health):
    part.register(app)


def _refuse_infeasible(made: pb.DeploymentPlan, model: str, name: str) -> None:
    if made.is_feasible:
        return
    against = list(blocking(made))
    told = "; ".join(
        f"{each.field}: {each.message} ({each.reason})" if each.field else f"{each.message} ({each.reason})"
        for each in against
    )
    raise Failure(
        Exit.CONFLICT,
        f"{title(model, name)} cannot be deployed so: {told or made.replacement_reason}",
        code="FAILED_PRECONDITION",
        reason=against[0].reason if against else "",
        violations=[(each.field, each.message) for each in against if each.field],
    )
