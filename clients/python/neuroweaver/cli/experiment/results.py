"""`neuroweaver experiment watch` and `results`: where an experiment stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Group, RenderableType
from rich.text import Text
from typer import Option

from neuroweaver.cli.arguments.references import Test
from neuroweaver.cli.arguments.values import moment
from neuroweaver.cli.experiment import view
from neuroweaver.cli.terminal.failures import BadInput, Exit, Failure, talking_to
from neuroweaver.cli.terminal.names import styled
from neuroweaver.cli.terminal.output import AsJson, console, print_answer, print_event, print_view
from neuroweaver.cli.terminal.watching import display
from neuroweaver.client.connection import Client
from neuroweaver.client.text import plain
from neuroweaver.v1 import experiment_pb2 as pb


def watch(
    test: Test,
    *,
    once: Annotated[bool, Option("--once", help="Show the present results and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the results as they change, until the experiment is concluded. With --json, one line per event.

    Example: neuroweaver experiment watch tuned-advisor
    """
    with talking_to("experiment") as client:
        if as_json and not once:
            for event in client.watch_results(test):
                print_event(event)
            return
        experiment = client.experiment.GetExperiment(pb.GetExperimentRequest(test_id=test))
        now = client.experiment.AnalyzeExperiment(pb.AnalyzeExperimentRequest(test_id=test))
        if as_json:
            print_event(now)
        elif once:
            print_view(view.board(now, experiment.spec))
        else:
            _follow(client, experiment, _Board(now, experiment.spec))


def results(
    test: Test,
    *,
    phase: Annotated[int | None, Option(min=0, help="Default: all phases.")] = None,
    as_of: Annotated[
        str, Option(metavar="TIME", help="Such as 2026-11-01T12:00:00Z or '2 days ago'. Default: now.")
    ] = "",
    plot: Annotated[
        Path | None,
        Option(
            metavar="FILE", help="Draw the target's effect over time: out.png or out.html. Needs matplotlib."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the verdict, and every metric with both methods' intervals and p-values.

    Example: neuroweaver experiment results tuned-advisor --plot effect.png
    """
    if plot and plot.suffix.lower() not in {".png", ".html", ".htm"}:
        raise BadInput(f"{plot} does not end with .png or .html", "--plot")
    at = moment(as_of, "--as-of") if as_of else None
    request = pb.AnalyzeExperimentRequest(test_id=test, phase=phase or 0, as_of=at)
    with talking_to("experiment") as client:
        analyzed = client.experiment.AnalyzeExperiment(request)
        spec = client.experiment.GetExperiment(pb.GetExperimentRequest(test_id=test)).spec
        if plot:
            _draw(list(client.past_results(test)), analyzed, spec, plot)
    print_answer(analyzed, lambda _: view.tables(analyzed, spec), as_json=as_json)
    if plot and not as_json:
        print_view(f"\n{plot}")


class _Board:
    def __init__(self, results: pb.ExperimentResults, spec: pb.ExperimentSpec) -> None:
        self._results, self._spec = results, spec
        self._news: list[Text] = []

    def add(self, event: pb.ResultsEvent) -> None:
        if event.HasField("results"):
            self._results = event.results
        elif event.HasField("state_changed"):
            self._results.state = event.state_changed.to_state
        if news := _news(event):
            self._news.append(news)

    def render(self) -> RenderableType:
        return Group(*self._news[-3:], self.picture())

    def picture(self) -> RenderableType:
        return view.board(self._results, self._spec)


def _follow(client: Client, experiment: pb.Experiment, board: _Board) -> None:
    with display(board, _news, as_json=False) as shown:
        for event in client.watch_results(
            experiment.test_id, experiment.last_sequence, on_break=shown.interrupted
        ):
            shown.show(event)
    if not console().is_terminal:
        print_view(board.picture())


def _news(event: pb.ResultsEvent) -> Text | None:
    """What happened besides new numbers."""
    match event.WhichOneof("event"):
        case "state_changed":
            change = event.state_changed
            reason = f" by {plain(change.actor)}  {plain(change.reason)}"
            return Text.assemble("now ", styled(change, "to_state"), reason)
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


def _draw(
    past: Sequence[pb.ExperimentResults], now: pb.ExperimentResults, spec: pb.ExperimentSpec, path: Path
) -> None:
    """The effect up to the results that are shown, of the same phase."""
    from neuroweaver.cli.experiment import effects  # noqa: PLC0415

    until = now.as_of.ToNanoseconds()
    history = [one for one in past if one.phase == now.phase and one.as_of.ToNanoseconds() < until]
    try:
        effects.write([*history, now], spec, path)
    except effects.MissingLibrary as error:
        raise Failure(Exit.FAILED, str(error)) from error
    except effects.NothingToDraw as error:
        raise Failure(Exit.CONFLICT, str(error), code="FAILED_PRECONDITION") from error
