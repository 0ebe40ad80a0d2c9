"""`neuroweaver experiment`: compare model versions on live traffic, and decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from rich.text import Text

from neuroweaver.client.cli import experiment_plan, experiment_results, experiment_view
from neuroweaver.client.cli.confirm import Yes, confirm, refuse_unasked
from neuroweaver.client.cli.experiment_names import Test
from neuroweaver.client.cli.failures import EPILOG, BadInput, talking_to
from neuroweaver.client.cli.output import (
    AsJson,
    console,
    print_facts,
    print_json,
    print_table,
    to_json,
    when,
)
from neuroweaver.client.cli.references import Reason
from neuroweaver.client.cli.spec_file import read_spec
from neuroweaver.client.text import plain
from neuroweaver.mesh.ids import new_id
from neuroweaver.v1 import experiment_pb2 as pb

app = typer.Typer(
    help="Experiments: compare model versions on live traffic.", no_args_is_help=False, epilog=EPILOG
)
app.command(epilog=EPILOG)(experiment_results.watch)
app.command(epilog=EPILOG)(experiment_results.results)
app.command(epilog=EPILOG)(experiment_plan.plan)


@app.command(epilog=EPILOG)
def create(
    spec: Annotated[
        Path,
        typer.Argument(
            metavar="SPEC",
            help="YAML or JSON: the fields of an ExperimentSpec, as variants, metrics, target_metric_id.",
            show_default=False,
        ),
    ],
    *,
    test_id: Annotated[
        str, typer.Option("--id", metavar="ID", help="Default: one is made up.", show_default=False)
    ] = "",
    check: Annotated[bool, typer.Option("--check", help="Only check; store nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create an experiment from a file. It assigns nobody before it is started.

    Example: neuroweaver experiment create tuned.yaml --id tuned-advisor
    """
    request = pb.CreateExperimentRequest(
        test_id=test_id, spec=read_spec(spec, pb.ExperimentSpec), validate_only=check, request_id=new_id()
    )
    with talking_to("experiment") as client:
        made = client.experiment.CreateExperiment(request)
    if as_json:
        print_json(to_json(made))
    elif check:
        console().print(Text("The experiment can be created as it is.", "green"))
    else:
        _print_state(made, as_json=False)


@app.command(epilog=EPILOG)
def start(test: Test, *, as_json: AsJson = False) -> None:
    """Start an experiment, or go on with a paused one.

    Example: neuroweaver experiment start tuned-advisor
    """
    with talking_to("experiment") as client:
        found = client.experiment.StartExperiment(
            pb.StartExperimentRequest(test_id=test, request_id=new_id())
        )
    _print_state(found, as_json=as_json)


@app.command(epilog=EPILOG)
def pause(test: Test, *, reason: Reason = "", as_json: AsJson = False) -> None:
    """Serve the control to everyone until the experiment is started again.

    Example: neuroweaver experiment pause tuned-advisor -m "an incident"
    """
    request = pb.PauseExperimentRequest(test_id=test, reason=reason, request_id=new_id())
    with talking_to("experiment") as client:
        found = client.experiment.PauseExperiment(request)
    _print_state(found, as_json=as_json)


@app.command(epilog=EPILOG)
def stop(test: Test, *, reason: Reason = "", as_json: AsJson = False) -> None:
    """End an experiment for good, without a decision yet.

    Example: neuroweaver experiment stop tuned-advisor -m "enough data"
    """
    request = pb.StopExperimentRequest(test_id=test, reason=reason, request_id=new_id())
    with talking_to("experiment") as client:
        found = client.experiment.StopExperiment(request)
    _print_state(found, as_json=as_json)


@app.command("list", epilog=EPILOG)
def list_experiments(
    *,
    query: Annotated[
        str,
        typer.Option("--filter", help="Such as state=RUNNING or labels.team=service.", show_default=False),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List the experiments, newest first.

    Example: neuroweaver experiment list --filter state=RUNNING
    """
    with talking_to("experiment") as client:
        found = list(client.experiments(query))
    if as_json:
        print_json({"experiments": [to_json(each) for each in found]})
        return
    rows = (
        (
            Text(each.test_id, "cyan"),
            experiment_view.state_of(each.state),
            each.spec.target_metric_id,
            when(each.create_time),
            each.spec.title,
        )
        for each in found
    )
    print_table(("EXPERIMENT", "STATE", "TARGET", "CREATED", "TITLE"), rows, empty="No experiments.")


@app.command(epilog=EPILOG)
def show(test: Test, *, as_json: AsJson = False) -> None:
    """Show an experiment with its variants and phases.

    Example: neuroweaver experiment show tuned-advisor
    """
    with talking_to("experiment") as client:
        found = client.experiment.GetExperiment(pb.GetExperimentRequest(test_id=test))
    if as_json:
        print_json(to_json(found))
        return
    print_facts(experiment_view.facts(found))
    console().print()
    console().print(experiment_view.allocations(found))
    if found.phases:
        console().print()
        console().print(experiment_view.phases(found))


@app.command(epilog=EPILOG)
def weights(
    test: Test,
    shares: Annotated[
        list[str],
        typer.Argument(metavar="VARIANT=WEIGHT", help="Every variant; together 1.", show_default=False),
    ],
    *,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Change the weights of all variants; a started experiment opens a new phase.

    Example: neuroweaver experiment weights tuned-advisor control=0.3 tuned=0.7 -m "it does well"
    """
    request = pb.UpdateWeightsRequest(
        test_id=test, weights=map(_weight, shares), reason=reason, request_id=new_id()
    )
    with talking_to("experiment") as client:
        found = client.experiment.UpdateWeights(request)
    if as_json:
        print_json(to_json(found))
    else:
        console().print(experiment_view.allocations(found))


@app.command(epilog=EPILOG)
def assign(
    test: Test,
    unit: Annotated[str, typer.Argument(help="The unit's id, such as a user's.", show_default=False)],
    *,
    attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="For targeting; repeat for several.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print which variant a unit gets, and why. Nothing is recorded.

    Example: neuroweaver experiment assign tuned-advisor user-17 --attribute plan=pro
    """
    request = pb.AssignVariantRequest(test_id=test, unit_id=unit)
    for each in attribute or ():
        name, value = _pair(each, "--attribute")
        json_format.ParseDict(_literal(value), request.attributes[name])
    with talking_to("experiment") as client:
        found = client.experiment.AssignVariant(request)
    if as_json:
        print_json(to_json(found))
        return
    why = pb.AssignmentReason.Name(found.reason).removeprefix("ASSIGNMENT_REASON_")
    target = found.target
    served = f"  {target.model_id}@{target.version or target.alias}" if target.model_id else ""
    line = Text.assemble(
        (plain(found.variant_id), "cyan"), plain(served), (f"  {why.replace('_', ' ').lower()}", "dim")
    )
    console().print(line, soft_wrap=True)


@app.command(epilog=EPILOG)
def conclude(
    test: Test,
    *,
    winner: Annotated[
        str,
        typer.Option(metavar="VARIANT", help="Default: what the verdict says.", show_default=False),
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Against the verdict; needs --winner and --reason.")
    ] = False,
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """End an experiment with a decision; a treatment that wins gets its model's alias.

    Example: neuroweaver experiment conclude tuned-advisor --yes
    """
    refuse_unasked(yes=yes, as_json=as_json)
    with talking_to("experiment") as client:
        if not yes:
            found = client.experiment.AnalyzeExperiment(pb.AnalyzeExperimentRequest(test_id=test))
            console().print(experiment_view.verdict(found))
        chosen = winner or "the winner by the verdict"
        confirm(f"Conclude {plain(test)} for {plain(chosen)}?", yes=yes, as_json=as_json)
        request = pb.ConcludeExperimentRequest(
            test_id=test, winner_variant_id=winner, force=force, reason=reason, request_id=new_id()
        )
        made = client.experiment.ConcludeExperiment(request)
    if as_json:
        print_json(to_json(made))
    else:
        print_facts(experiment_view.facts(made))


def _print_state(experiment: pb.Experiment, *, as_json: bool) -> None:
    if as_json:
        print_json(to_json(experiment))
    else:
        line = Text.assemble((experiment.test_id, "cyan"), " ", experiment_view.state_of(experiment.state))
        console().print(line, soft_wrap=True)


def _weight(text: str) -> pb.VariantWeight:
    name, value = _pair(text, "VARIANT=WEIGHT")
    try:
        return pb.VariantWeight(variant_id=name, weight=float(value))
    except ValueError as error:
        raise BadInput(f"{value!r} is not a number", name) from error


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise BadInput(f"{text!r} is not NAME=VALUE", option)
    return name, value


def _literal(text: str) -> Any:
    """Numbers, true, false and lists as JSON has them; everything else is a text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | str | list) else text
