"""`neuroweaver deploy plan|apply|list|status`: turn a model version into an endpoint."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text
from typer import Option

from neuroweaver.cli.arguments.options import with_options
from neuroweaver.cli.arguments.references import Name, Reason, parsed
from neuroweaver.cli.deploy import plan_view, view
from neuroweaver.cli.deploy.events import serving_version, title
from neuroweaver.cli.deploy.follow import finish, patience
from neuroweaver.cli.deploy.names import DeploymentName, Target, Timeout, present
from neuroweaver.cli.deploy.spec import Changes, changes_of, spec_of, undeleted
from neuroweaver.cli.terminal.confirm import Yes, asking
from neuroweaver.cli.terminal.failures import Exit, Failure, talking_to
from neuroweaver.cli.terminal.names import styled
from neuroweaver.cli.terminal.output import AsJson, print_answer, print_list, print_view, when
from neuroweaver.v1 import deployer_pb2 as pb


@with_options(changes_of, into="changes")
def plan(
    target: Target,
    *,
    changes: Changes,
    name: DeploymentName = "",
    manifests: Annotated[bool, Option("--manifests", help="Print only the objects, as YAML.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what `deploy apply` would do, and change nothing; exits with 5 if it cannot be done.

    Example: neuroweaver deploy plan advisor@1.2.0 --replicas 2 --canary 10:5m,50:30m
    """
    model, version = parsed(target)
    with talking_to("deployer") as client:
        spec = spec_of((model, version), changes, undeleted(client, model, name))
        request = pb.PlanDeploymentRequest(model_id=model, name=name, spec=spec)
        planned = client.deployer.PlanDeployment(request)
    if manifests and not as_json:
        typer.echo(plan_view.manifests(planned), nl=False)
    else:
        print_answer(planned, lambda _: plan_view.plan(planned, model, name), as_json=as_json)
    if not planned.is_feasible:
        raise typer.Exit(Exit.CONFLICT)


@with_options(changes_of, into="changes")
def apply(
    target: Target,
    *,
    changes: Changes,
    name: DeploymentName = "",
    watch: Annotated[
        bool, Option("--watch/--no-watch", help="Show what happens until the change is complete.")
    ] = True,
    timeout: Timeout = "",
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Deploy a model, or change a deployment: show the plan, ask, and show the progress until it is ready.

    Exits with 1 if it fails or is rolled back. Ctrl-C and --timeout end the watching, not the deployment.
    With --json, prints one line of JSON per event; with --no-watch, the deployment.

    Examples: neuroweaver deploy apply advisor@production --replicas 2 --yes --timeout 30m,
    neuroweaver deploy apply advisor -f advisor.yaml
    """
    ask = asking(yes=yes, as_json=as_json)
    within_s = patience(timeout)
    model, version = parsed(target)
    with talking_to("deployer") as client:
        before = undeleted(client, model, name)
        spec = spec_of((model, version), changes, before)
        planned = client.deployer.PlanDeployment(
            pb.PlanDeploymentRequest(model_id=model, name=name, spec=spec)
        )
        if not as_json:
            print_view(plan_view.plan(planned, model, name))
        _refuse_infeasible(planned, model, name)
        ask(f"Apply this to {title(model, name)}?")
        request = pb.DeployModelRequest(
            model_id=model,
            name=name,
            spec=spec,
            plan_digest=planned.digest,
            reason=reason,
            etag=before.etag if before else "",
        )
        deployed = client.deployer.DeployModel(request)
        finish(client, deployed, before, watch=watch, within_s=within_s, as_json=as_json)


def list_(
    *,
    query: Annotated[str, Option("--filter", help="Such as state=READY or labels.team=search.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the deployments.

    Example: neuroweaver deploy list --filter state=DEGRADED
    """
    columns = {
        "DEPLOYMENT": lambda deployment: Text(title(deployment.model_id, deployment.name), "cyan"),
        "STATE": lambda deployment: styled(deployment, "state"),
        "VERSION": lambda deployment: serving_version(deployment) or "-",
        "READY": lambda deployment: f"{deployment.replicas.ready}/{deployment.replicas.desired}",
        "CHANGED": lambda deployment: when(deployment.update_time),
        "ENDPOINT": lambda deployment: deployment.endpoint,
    }
    with talking_to("deployer") as client:
        print_list("deployments", client.deployments(query), columns, as_json=as_json)


def status(model: Name, *, name: DeploymentName = "", as_json: AsJson = False) -> None:
    """Show a deployment: revisions and their traffic, replicas and their cold starts, conditions.

    Example: neuroweaver deploy status advisor
    """
    with talking_to("deployer") as client:
        print_answer(present(client, model, name), view.picture, as_json=as_json)


def _refuse_infeasible(planned: pb.DeploymentPlan, model: str, name: str) -> None:
    if planned.is_feasible:
        return
    findings = [finding for finding in planned.findings if finding.is_blocking]
    why = "; ".join(
        f"{f'{finding.field}: ' if finding.field else ''}{finding.message} ({finding.reason})"
        for finding in findings
    )
    raise Failure(
        Exit.CONFLICT,
        f"{title(model, name)} cannot be deployed like this: {why or planned.replacement_reason}",
        code="FAILED_PRECONDITION",
        reason=findings[0].reason if findings else "",
        violations=[(finding.field, finding.message) for finding in findings if finding.field],
    )
