"""The main job from end to end on this machine: `python -m neuroweaver.cli.demo`.

Starts the services, trains a service advisor, writes a report, and stops what it started unless KEEP=1.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import json_format
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from neuroweaver.cli.terminal.output import facts
from neuroweaver.cli.terminal.watching import display
from neuroweaver.cli.train.progress import Board
from neuroweaver.client.connection import Client
from neuroweaver.client.text import duration, plain
from neuroweaver.client.training_history import History, stage_title, state_name
from neuroweaver.local.processes import SERVICES, Fleet, Place, ProcessError, free_ports, unwinding_on_signals
from neuroweaver.mesh.wire import status
from neuroweaver.mesh.wire.environment import SettingsError
from neuroweaver.mesh.wire.settings import PORTS
from neuroweaver.report import outcome, report
from neuroweaver.v1 import trainer_pb2 as trainer

DEMO_CONFIG: Final[Mapping[str, Any]] = {
    "model_name": "service-advisor",
    "base_model": "smollm2-135m-instruct",
    "specialization": "service_advisor",
    "dataset_path": "builtin:automotive",
    "quantization": "QUANTIZATION_NF4",
    "lora_r": 16,
    "lora_alpha": 32,
    "epochs": 1,
    "learning_rate": 1e-3,
    "warmup_steps": 3,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_seq_length": 256,
    "enable_rlaif": True,
    "rlaif_samples": 24,
    "responses_per_prompt": 2,
    "reward_model_epochs": 2,
    "ppo_steps": 6,
    "ppo_batch_size": 8,
    "ppo_epochs": 1,
    "ppo_learning_rate": 2e-4,
    "max_new_tokens": 96,
}
"""Small enough for two cores and ten minutes."""

ENDPOINT_JUDGE: Final = "gpt-4o-mini"
"""With OPENAI_API_KEY and without NEUROWEAVER_FEEDBACK_MODEL."""

_FOLDER: Final = Path("demo-report")
_SAMPLES_SHOWN: Final = 3
_MAX_ANSWER: Final = 320


def main() -> int:
    """The exit code: 0 if a version was registered."""
    console = Console(highlight=False)
    try:
        environ = _environment(console)
        with unwinding_on_signals(), Fleet(environ) as fleet:
            return _run(fleet, console, keep=os.environ.get("KEEP", "") not in {"", "0"})
    except (ProcessError, SettingsError, report.MissingLibrary, OSError) as error:
        return _failed(console, str(error))
    except KeyboardInterrupt:
        _say(console, "Interrupted; everything that was started has stopped.", "yellow")
        return 130


def demo_config(environ: Mapping[str, str]) -> trainer.TrainingConfig:
    """The judge is the endpoint's where there is a key, else the embedded one."""
    judge = environ.get("NEUROWEAVER_FEEDBACK_MODEL") or (
        ENDPOINT_JUDGE if environ.get("OPENAI_API_KEY") else "embedded"
    )
    return json_format.ParseDict({**DEMO_CONFIG, "feedback_model": judge}, trainer.TrainingConfig())


def _run(fleet: Fleet, console: Console, *, keep: bool) -> int:
    home = fleet.places[0].home
    _say(console, f"Starting the services (home {home})", "bold")
    fleet.start()
    fleet.wait_until_healthy()
    for place in fleet.places:
        _say(console, f"  {place.service:<11} {place.address}", "dim")
    started = time.monotonic()
    with Client({place.service: place.address for place in fleet.places}) as client:
        try:
            gathered = report.Report.gather(client, _train(client, fleet, console))
        except grpc.RpcError as error:
            return _failed(console, f"{status.describe(error)} (logs: {fleet.places[0].log.parent})")
    files = report.write(gathered, _FOLDER / "report.html", _FOLDER / "curves.png")
    _summarize(console, gathered.job, gathered.history, time.monotonic() - started)
    for path in files:
        _say(console, f"Report: {path.absolute()}", "green")
    _point_further(console, fleet, gathered, keep=keep)
    if keep:
        fleet.let_go()
    if gathered.job.state == trainer.JOB_STATE_SUCCEEDED:
        return 0
    return _failed(console, f"{_ending(gathered.job)} (logs: {fleet.places[0].log.parent}, {home / 'jobs'})")


def _ending(job: trainer.TrainingJob) -> str:
    failure = job.failure
    where = f"{state_name(job.state)} in {stage_title(failure.stage or job.stage)}"
    return f"job {job.job_id} {where}: {failure.message} {failure.reason}".rstrip(": ")


def _train(client: Client, fleet: Fleet, console: Console) -> trainer.TrainingJob:
    """The job after its end. Raises ProcessError if a service ends meanwhile."""
    config = demo_config(os.environ)
    job = client.trainer.StartTraining(trainer.StartTrainingRequest(config=config))
    heading = f"Training {config.model_name} on {config.base_model}, judged by {config.feedback_model}"
    _say(console, f"\n{heading}", "bold")
    board = Board(job)
    with display(board, board.line, as_json=False) as shown:

        def interrupted(error: grpc.RpcError) -> None:
            fleet.check_alive()
            shown.interrupted(error)

        for event in client.watch_training(job.job_id, on_break=interrupted):
            shown.show(event)
    return client.job(job.job_id)


def _environment(console: Console) -> dict[str, str]:
    """This process's, with a home of the demo's own, the embedded database, and ports that are free."""
    environ = dict(os.environ)
    environ.setdefault("NEUROWEAVER_HOME", str((_FOLDER / "home").absolute()))
    for name in ("DATABASE_URL", *(f"{service.upper()}_ADDRESS" for service in SERVICES)):
        environ.pop(f"NEUROWEAVER_{name}", None)
    places = [Place.from_environment(service, environ) for service in SERVICES]
    taken = [place for place in places if not place.is_free]
    if taken:
        variables = [variable for place in places for variable in place.ports]
        environ |= zip(variables, map(str, free_ports(len(variables))), strict=True)
        listed = ", ".join(" or ".join(map(str, place.ports.values())) for place in taken)
        _say(console, f"Ports in use ({listed}): taking free ones instead.", "yellow")
    return environ


def _summarize(console: Console, job: trainer.TrainingJob, history: History, spent_s: float) -> None:
    pairs = [
        (stage_title(stage.stage), duration(stage.duration_s) if stage.is_finished else "not finished")
        for stage in history.in_order()
    ]
    console.print(Text(), facts([*pairs, ("Total", duration(spent_s))]))
    if job.HasField("result"):
        console.print(Text(), facts(outcome.facts(job.result)))
    for sample in job.result.samples[:_SAMPLES_SHOWN]:
        _show_sample(console, sample)


def _show_sample(console: Console, sample: trainer.JudgedSample) -> None:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(
        _answer("base", sample.base_response, sample.base_score, is_scored=sample.HasField("base_score")),
        _answer("tuned", sample.tuned_response, sample.tuned_score, is_scored=sample.HasField("tuned_score")),
    )
    console.print()
    console.print(Text(plain(sample.prompt), style="bold"))
    console.print(grid)


def _answer(who: str, text: str, score: float, *, is_scored: bool) -> Panel:
    text = plain(text.strip()) or "(empty answer)"
    shown = text if len(text) <= _MAX_ANSWER else f"{text[: _MAX_ANSWER - 1]}…"
    title = f"{who}, score {score:.1f}" if is_scored else f"{who}, no score"
    return Panel(Text(shown), title=title, title_align="left", border_style="dim")


def _point_further(console: Console, fleet: Fleet, gathered: report.Report, *, keep: bool) -> None:
    command = _command()
    state = "The services are still running" if keep else "The services stop now; their data is kept"
    _say(console, f"\n{state}. To explore further:", "bold")
    _say(console, f"  export {' '.join(_settings(fleet))}")
    if not keep:
        _say(console, f"  {command} up --detach")
    for _heading, lines in report.further(gathered):
        for line in lines:
            own = line.startswith("neuroweaver ")
            _say(console, f"  {command}{line.removeprefix('neuroweaver')}" if own else f"  {line}")
    _say(console, f"  {command} down")


def _settings(fleet: Fleet) -> list[str]:
    """What a shell must set to reach these services: the home, and ports other than the default ones."""
    unusual = [place for place in fleet.places if place.port != PORTS[place.service]]
    ports = [f"NEUROWEAVER_{place.service.upper()}_PORT={place.port}" for place in unusual]
    return [f"NEUROWEAVER_HOME={shlex.quote(str(fleet.places[0].home))}", *ports]


def _command() -> str:
    """How to call the command line of this installation from here."""
    script = Path(sys.executable).parent / "neuroweaver"
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m neuroweaver.cli"
    return shlex.quote(str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script))


def _failed(console: Console, reason: str) -> int:
    _say(console, f"The demo failed: {' '.join(plain(reason).split())}", "bold red")
    return 1


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
