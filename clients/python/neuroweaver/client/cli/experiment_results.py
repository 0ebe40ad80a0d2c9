"""`neuroweaver experiment watch` and `results`: where the data of an experiment stand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import grpc
import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from neuroweaver.client import effects
from neuroweaver.client.cli import experiment_view
from neuroweaver.client.cli.experiment_names import Test
from neuroweaver.client.cli.failures import BadInput, Exit, Failure, talking_to
from neuroweaver.client.cli.model_alias import moment
from neuroweaver.client.cli.output import AsJson, console, print_json, print_json_line, to_json
from neuroweaver.client.connection import Client
from neuroweaver.client.curves import MissingLibrary
from neuroweaver.client.text import plain
from neuroweaver.v1 import experiment_pb2 as pb


def watch(
    test: Test,
    *,
    once: Annotated[bool, typer.Option("--once", help="Show the results as of now and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the results as they move, until the experiment is concluded. With --json, one line an event.

    Example: neuroweaver experiment watch tuned-advisor
    """
    with talking_to("experiment") as client:
        if as_json and not once:
            for event in client.watch_results(test):
                print_json_line(to_json(event))
            return
        found = client.experiment.GetExperiment(pb.GetExperimentRequest(test_id=test))
        now = client.experiment.AnalyzeExperiment(pb.AnalyzeExperimentRequest(test_id=test))
        if as_json:
            print_json_line(to_json(now))
        elif once:
            console().print(experiment_view.board(now, found.spec))
        else:
            _follow(client, found, now)


def _follow(client: Client, experiment: pb.Experiment, results: pb.ExperimentResults) -> None:
    news: list[Text] = []

    def shown() -> RenderableType:
        return Group(*news[-3:], experiment_view.board(results, experiment.spec))

    with Live(get_renderable=shown, console=console(), refresh_per_second=4) as live:

        def on_break(_error: grpc.RpcError) -> None:
            news.append(Text("connection lost, trying again", "yellow"))

        for event in client.watch_results(experiment.test_id, experiment.last_sequence, on_break=on_break):
            kind = event.WhichOneof("event")
            if kind == "results":
                results = event.results
            elif kind == "state_changed":
                results.state = event.state_changed.to_state
            if told := _told(event):
                news.append(told)
            live.refresh()


def _told(event: pb.ResultsEvent) -> Text | None:
    """What happened besides new numbers."""
    match event.WhichOneof("event"):
        case "state_changed":
            change = event.state_changed
            state = experiment_view.state_of(change.to_state)
            return Text.assemble("now ", state, f" by {plain(change.actor)}  {plain(change.reason)}")
        case "phase_opened":
            phase = event.phase_opened
            return Text(f"phase {phase.number}: {plain(phase.reason)}")
        case "coverage_changed":
            return Text(f"coverage {event.coverage_changed.coverage:.1%}")
        case "guardrail_breached":
            breach = event.guardrail_breached
            return Text(f"guardrail {breach.guardrail.metric_id} breached by {breach.variant_id}", "bold red")
        case "conclusion":
            error = event.conclusion.last_error
            return Text(f"the alias has not moved yet: {plain(error)}", "yellow") if error else None
    return None


def results(
    test: Test,
    *,
    phase: Annotated[int, typer.Option(min=0, help="Default: all phases.", show_default=False)] = 0,
    as_of: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="What was known then: 2026-11-01T12:00:00Z, or '2 days ago'. Default: now.",
            show_default=False,
        ),
    ] = "",
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the target's effect over time: out.png, or out.html. Needs the extra `report`.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the verdict, and every metric with both methods' intervals and p-values.

    Example: neuroweaver experiment results tuned-advisor --plot effect.png
    """
    if plot and plot.suffix.lower() not in {".png", ".html", ".htm"}:
        raise BadInput(f"{plot} ends neither with .png nor with .html", "--plot")
    request = pb.AnalyzeExperimentRequest(test_id=test, phase=phase, as_of=_moment(as_of) if as_of else None)
    with talking_to("experiment") as client:
        found = client.experiment.AnalyzeExperiment(request)
        spec = client.experiment.GetExperiment(pb.GetExperimentRequest(test_id=test)).spec
        if plot:
            _draw(list(client.past_results(test)), found, spec, plot)
    if as_json:
        print_json(to_json(found))
        return
    console().print(experiment_view.tables(found, spec))
    if plot:
        console().print(Text(f"\n{plot}"), soft_wrap=True)


def _draw(
    past: Sequence[pb.ExperimentResults], found: pb.ExperimentResults, spec: pb.ExperimentSpec, path: Path
) -> None:
    """The course up to the results that are shown, of the same phase."""
    until = found.as_of.ToNanoseconds()
    course = [each for each in past if each.phase == found.phase and each.as_of.ToNanoseconds() < until]
    try:
        effects.write([*course, found], spec, path)
    except MissingLibrary as error:
        raise Failure(Exit.FAILED, str(error)) from error
    except effects.NothingToDraw as error:
        raise Failure(Exit.CONFLICT, str(error), code="FAILED_PRECONDITION") from error


def _moment(text: str) -> Timestamp:
    try:
        return moment(text, datetime.now(UTC))
    except BadInput as error:
        told = f"{text!r} is not a time such as 2026-11-01T12:00:00Z or '2 days ago'"
        raise BadInput(told, "--as-of") from error
