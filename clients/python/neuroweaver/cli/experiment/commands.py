"""`neuroweaver experiment`: compare model versions on live traffic, and decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from google.protobuf import json_format
from rich.text import Text
from typer import Argument, Option

from neuroweaver.cli.arguments.references import Reason, Test
from neuroweaver.cli.arguments.spec_file import read_spec
from neuroweaver.cli.arguments.values import pair
from neuroweaver.cli.experiment import view
from neuroweaver.cli.terminal.confirm import Yes, asking
from neuroweaver.cli.terminal.failures import BadInput, talking_to
from neuroweaver.cli.terminal.names import spoken, styled
from neuroweaver.cli.terminal.output import AsJson, print_answer, print_list, print_view, when
from neuroweaver.client.text import plain
from neuroweaver.v1 import experiment_pb2 as pb


def create(
    spec: Annotated[
        Path,
        Argument(metavar="SPEC", help="YAML or JSON: an ExperimentSpec, with variants, metrics and so on."),
    ],
    *,
    test_id: Annotated[str, Option("--id", metavar="ID", help="Default: a generated one.")] = "",
    check: Annotated[bool, Option("--check", help="Only check; store nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create an experiment from a file. Nobody is assigned until it is started.

    Example: neuroweaver experiment create tuned.yaml --id tuned-advisor
    """
    request = pb.CreateExperimentRequest(
        test_id=test_id, spec=read_spec(spec, pb.ExperimentSpec), validate_only=check
    )
    with talking_to("experiment") as client:
        created = client.experiment.CreateExperiment(request)
    valid = Text("The experiment is valid and can be created.", "green")
    print_answer(created, (lambda _: valid) if check else _line, as_json=as_json)


def start(test: Test, *, as_json: AsJson = False) -> None:
    """Start an experiment, or continue a paused one.

    Example: neuroweaver experiment start tuned-advisor
    """
    request = pb.StartExperimentRequest(test_id=test)
    with talking_to("experiment") as client:
        print_answer(client.experiment.StartExperiment(request), _line, as_json=as_json)


def pause(test: Test, *, reason: Reason = "", as_json: AsJson = False) -> None:
    """Serve the control to everyone until the experiment is started again.

    Example: neuroweaver experiment pause tuned-advisor -m "an incident"
    """
    request = pb.PauseExperimentRequest(test_id=test, reason=reason)
    with talking_to("experiment") as client:
        print_answer(client.experiment.PauseExperiment(request), _line, as_json=as_json)


def stop(test: Test, *, reason: Reason = "", as_json: AsJson = False) -> None:
    """End an experiment for good, without a decision yet.

    Example: neuroweaver experiment stop tuned-advisor -m "enough data"
    """
    request = pb.StopExperimentRequest(test_id=test, reason=reason)
    with talking_to("experiment") as client:
        print_answer(client.experiment.StopExperiment(request), _line, as_json=as_json)


def list_(
    *,
    query: Annotated[str, Option("--filter", help="Such as state=RUNNING or labels.team=service.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the experiments, newest first.

    Example: neuroweaver experiment list --filter state=RUNNING
    """
    columns = {
        "EXPERIMENT": lambda experiment: Text(experiment.test_id, "cyan"),
        "STATE": lambda experiment: styled(experiment, "state"),
        "TARGET": lambda experiment: experiment.spec.target_metric_id,
        "CREATED": lambda experiment: when(experiment.create_time),
        "TITLE": lambda experiment: experiment.spec.title,
    }
    with talking_to("experiment") as client:
        print_list("experiments", client.experiments(query), columns, as_json=as_json)


def show(test: Test, *, as_json: AsJson = False) -> None:
    """Show an experiment with its variants and phases.

    Example: neuroweaver experiment show tuned-advisor
    """
    with talking_to("experiment") as client:
        experiment = client.experiment.GetExperiment(pb.GetExperimentRequest(test_id=test))
    print_answer(experiment, view.experiment, as_json=as_json)


def weights(
    test: Test,
    shares: Annotated[
        list[str], Argument(metavar="VARIANT=WEIGHT", help="Every variant; the weights sum to 1.")
    ],
    *,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Change the weights of all variants; a started experiment enters a new phase.

    Example: neuroweaver experiment weights tuned-advisor control=0.3 tuned=0.7 -m "it does well"
    """
    request = pb.UpdateWeightsRequest(test_id=test, weights=map(_weight, shares), reason=reason)
    with talking_to("experiment") as client:
        print_answer(client.experiment.UpdateWeights(request), view.allocations, as_json=as_json)


def assign(
    test: Test,
    unit: Annotated[str, Argument(help="The unit's id, such as a user's.")],
    *,
    attribute: Annotated[
        list[str] | None, Option(metavar="NAME=VALUE", help="For targeting; repeat for several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print which variant a unit gets, and why. Nothing is recorded.

    Example: neuroweaver experiment assign tuned-advisor user-17 --attribute plan=pro
    """
    request = pb.AssignVariantRequest(test_id=test, unit_id=unit)
    for text in attribute or ():
        name, value = pair(text, "--attribute")
        json_format.ParseDict(_literal(value), request.attributes[name])
    with talking_to("experiment") as client:
        print_answer(client.experiment.AssignVariant(request), _assignment, as_json=as_json)


def conclude(
    test: Test,
    *,
    winner: Annotated[str, Option(metavar="VARIANT", help="Default: the winner by the verdict.")] = "",
    force: Annotated[
        bool, Option("--force", help="Against the verdict; requires --winner and --reason.")
    ] = False,
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """End an experiment with a decision; a treatment that wins gets its model's alias.

    Example: neuroweaver experiment conclude tuned-advisor --yes
    """
    ask = asking(yes=yes, as_json=as_json)
    with talking_to("experiment") as client:
        if not yes:
            results = client.experiment.AnalyzeExperiment(pb.AnalyzeExperimentRequest(test_id=test))
            print_view(view.verdict(results))
        ask(f"Conclude {plain(test)} for {plain(winner or 'the winner by the verdict')}?")
        request = pb.ConcludeExperimentRequest(
            test_id=test, winner_variant_id=winner, force=force, reason=reason
        )
        print_answer(client.experiment.ConcludeExperiment(request), view.summary, as_json=as_json)


def _line(experiment: pb.Experiment) -> Text:
    return Text.assemble((experiment.test_id, "cyan"), " ", styled(experiment, "state"))


def _assignment(assigned: pb.VariantAssignment) -> Text:
    model = view.served(assigned.target)
    served = f"  {plain(model)}" if model else ""
    reason = (f"  {spoken(assigned, 'reason')}", "dim")
    return Text.assemble((plain(assigned.variant_id), "cyan"), served, reason)


def _weight(text: str) -> pb.VariantWeight:
    name, value = pair(text, "VARIANT=WEIGHT")
    try:
        return pb.VariantWeight(variant_id=name, weight=float(value))
    except ValueError as error:
        raise BadInput(f"{value!r} is not a number", name) from error


def _literal(text: str) -> Any:
    """Numbers, true, false and lists as in JSON; everything else is text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | str | list) else text
