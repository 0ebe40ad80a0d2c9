"""`neuroweaver train`: jobs, their progress and their data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from neuroweaver.cli.terminal.failures import EPILOG, Exit, Failure, talking_to
from neuroweaver.cli.terminal.output import (
    AsJson,
    console,
    print_facts,
    print_json,
    print_json_line,
    print_table,
    state_text,
    to_json,
    when,
)
from neuroweaver.cli.train.config import read_config, to_config, with_config_options
from neuroweaver.cli.train.progress import display, figures
from neuroweaver.client.connection import Client
from neuroweaver.client.text import duration, plain
from neuroweaver.client.training_history import ENDED, History, stage_name, stage_title, state_name
from neuroweaver.mesh.wire.ids import new_id
from neuroweaver.report import outcome
from neuroweaver.report import report as job_report
from neuroweaver.v1 import trainer_pb2 as trainer

app = typer.Typer(
    help="Training jobs: start, watch, cancel, resume, report.", no_args_is_help=False, epilog=EPILOG
)

Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]


@app.command(epilog=EPILOG)
@with_config_options
def start(
    *,
    options: dict[str, Any],
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON with TrainingConfig's fields; options given beside it win.", show_default=False
        ),
    ] = None,
    job_id: Annotated[
        str, typer.Option(help="The job's id. Default: made by the server.", show_default=False)
    ] = "",
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show the job's progress until it ends.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start a training job.

    With --watch --json, prints one line of JSON an event.

    Example: neuroweaver train start --model-name service-advisor --base-model smollm2-135m-instruct
    --specialization service_advisor --dataset builtin:automotive --watch
    """
    request = trainer.StartTrainingRequest(
        job_id=job_id,
        config=to_config({**(read_config(config) if config else {}), **options}),
        request_id=new_id(),
    )
    with talking_to("trainer") as client:
        job = client.trainer.StartTraining(request)
        if watch:
            _watch(client, job, since=0, as_json=as_json)
        elif as_json:
            print_json(to_json(job))
        else:
            console().print(Text.assemble(job.job_id, " ", state_text(state_name(job.state))))
            console().print(
                Text(f"Watch it: neuroweaver train watch {job.job_id}", style="dim"), soft_wrap=True
            )


@app.command(epilog=EPILOG)
def watch(
    job: Job,
    *,
    since: Annotated[int, typer.Option(min=0, help="Only events after this sequence.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show a job's progress from its beginning until it ends; ends with 1 if the job did not succeed.

    Ctrl-C ends the watching, not the job. With --json, one line of JSON an event.

    Example: neuroweaver train watch 01J8 --json
    """
    with talking_to("trainer") as client:
        found = client.trainer.GetTrainingJob(trainer.GetTrainingJobRequest(job_id=job))
        _watch(client, found, since=since, as_json=as_json)


@app.command("list", epilog=EPILOG)
def list_jobs(
    *,
    state: Annotated[
        str, typer.Option(help="Only jobs in this state, such as RUNNING.", show_default=False)
    ] = "",
    model_name: Annotated[str, typer.Option(help="Only jobs for this model.", show_default=False)] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first.

    Example: neuroweaver train list --state FAILED
    """
    terms = (f"state={state.upper()}" if state else "", f"model_name={model_name}" if model_name else "")
    with talking_to("trainer") as client:
        jobs = list(client.jobs(" AND ".join(filter(None, terms)), limit))
    if as_json:
        print_json({"jobs": [to_json(job) for job in jobs]})
        return
    rows = (
        (
            job.job_id,
            state_text(state_name(job.state)),
            stage_title(job.stage),
            job.config.model_name,
            job.result.version,
            when(job.create_time),
        )
        for job in jobs
    )
    print_table(("JOB", "STATE", "STAGE", "MODEL", "VERSION", "CREATED"), rows, empty="No jobs.")


@app.command(epilog=EPILOG)
def show(job: Job, *, as_json: AsJson = False) -> None:
    """Show a job: its state, its configuration and what came out.

    Example: neuroweaver train show 01J8
    """
    with talking_to("trainer") as client:
        found = client.trainer.GetTrainingJob(trainer.GetTrainingJobRequest(job_id=job))
    if as_json:
        print_json(to_json(found))
        return
    print_facts(_facts(found))
    console().print()
    config = to_json(found.config)
    print_facts((name, _brief(value)) for name, value in config.items())


@app.command(epilog=EPILOG)
def cancel(job: Job, *, as_json: AsJson = False) -> None:
    """Ask a job to stop; what is whole is kept, and it can be resumed.

    Example: neuroweaver train cancel 01J8
    """
    with talking_to("trainer") as client:
        found = client.trainer.CancelTraining(trainer.CancelTrainingRequest(job_id=job, request_id=new_id()))
    _print_state(found, as_json=as_json)


@app.command(epilog=EPILOG)
def resume(
    job: Job,
    *,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show the job's progress until it ends.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint.

    Example: neuroweaver train resume 01J8 --watch
    """
    with talking_to("trainer") as client:
        found = client.trainer.ResumeTraining(trainer.ResumeTrainingRequest(job_id=job, request_id=new_id()))
        if watch:
            _watch(client, found, since=0, as_json=as_json)
            return
    _print_state(found, as_json=as_json)


@app.command(epilog=EPILOG)
def logs(
    job: Job,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    since: Annotated[int, typer.Option(min=0, help="Only lines after this sequence.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print the log of a job's worker. With --json, one line of JSON a log line.

    Example: neuroweaver train logs 01J8 --follow
    """
    screen = console()
    styles = {"WARNING": "yellow", "ERROR": "red", "DEBUG": "dim"}
    with talking_to("trainer") as client:
        for line in client.watch_logs(job, since, follow=follow):
            if as_json:
                print_json_line(to_json(line))
            else:
                style = styles.get(line.level, "")
                screen.print(
                    Text(f"{when(line.time)} {line.level:<7} {plain(line.message)}", style), soft_wrap=True
                )


@app.command(epilog=EPILOG)
def validate(
    dataset: Annotated[str, typer.Argument(help="As --dataset of `train start`.", show_default=False)],
    *,
    base_model: Annotated[
        str, typer.Option(help="Counts tokens with its tokenizer.", show_default=False)
    ] = "",
    specialization: Annotated[
        str, typer.Option(help="Puts its system prompt in front.", show_default=False)
    ] = "",
    max_seq_length: Annotated[
        int | None, typer.Option(min=16, help="Longer rows are cut.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read a data set as a job would; ends with 2 if a job would refuse it.

    Example: neuroweaver train validate service.jsonl --base-model smollm2-135m-instruct
    """
    request = trainer.ValidateDatasetRequest(
        dataset_path=dataset,
        base_model=base_model,
        specialization=specialization,
        max_seq_length=max_seq_length,
    )
    with talking_to("trainer") as client:
        found = client.trainer.ValidateDataset(request)
    if as_json:
        print_json(to_json(found))
    else:
        _print_validation(found)
    if not found.is_usable:
        raise typer.Exit(Exit.BAD_INPUT)


@app.command(epilog=EPILOG)
def templates(*, as_json: AsJson = False) -> None:
    """List the specialisations that a job can name.

    Example: neuroweaver train templates
    """
    with talking_to("trainer") as client:
        found = client.trainer.ListTemplates(trainer.ListTemplatesRequest())
    if as_json:
        print_json(to_json(found))
        return
    rows = (
        (each.id, each.title, str(len(each.evaluation_prompts)), each.description) for each in found.templates
    )
    print_table(("ID", "TITLE", "PROMPTS", "DESCRIPTION"), rows, empty="No specialisations.")


@app.command(epilog=EPILOG)
def report(
    job: Job,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML page to write.")] = Path(
        "report.html"
    ),
    png: Annotated[Path | None, typer.Option(help="Also draw the curves here.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Write a page about a job that has ended: curves, stages, both models' answers, lineage.

    Needs the extra `report` (matplotlib).

    Example: neuroweaver train report 01J8 -o report.html
    """
    with talking_to("trainer") as client:
        found = client.trainer.GetTrainingJob(trainer.GetTrainingJobRequest(job_id=job))
        if found.state not in ENDED:
            raise Failure(
                Exit.CONFLICT,
                f"the job is {state_name(found.state)}; there is a report when it has ended",
                code="FAILED_PRECONDITION",
            )
        try:
            written = job_report.write(job_report.Report.gather(client, found), output, png)
        except job_report.MissingLibrary as error:
            raise Failure(Exit.FAILED, str(error)) from error
    if as_json:
        print_json({"files": [str(path) for path in written]})
        return
    for path in written:
        console().print(Text(str(path)), soft_wrap=True)


def _watch(client: Client, job: trainer.TrainingJob, *, since: int, as_json: bool) -> None:
    """Raises Failure if the job ended otherwise than well."""
    history = History(job_id=job.job_id, state=job.state)
    if as_json:
        for event in client.watch_training(job.job_id, since):
            history.add(event)
            print_json_line(to_json(event))
    else:
        with display(console(), job.config) as shown:
            for event in client.watch_training(job.job_id, since, on_break=shown.interrupted):
                history.add(event)
                shown.show(event, history)
    ended = client.trainer.GetTrainingJob(trainer.GetTrainingJobRequest(job_id=job.job_id))
    if ended.state != trainer.JOB_STATE_SUCCEEDED:
        raise _ended_badly(ended)
    if not as_json:
        console().print()
        print_facts(_facts(ended))


def _ended_badly(job: trainer.TrainingJob) -> Failure:
    state = state_name(job.state)
    if not job.HasField("failure"):
        return Failure(Exit.FAILED, f"job {job.job_id} is {state}", code=state)
    failure = job.failure
    again = f"; `neuroweaver train resume {job.job_id}` goes on from there" if failure.is_resumable else ""
    return Failure(
        Exit.FAILED,
        f"job {job.job_id} {state} in {stage_title(failure.stage)}: {failure.message.rstrip('.')} "
        f"({failure.reason}){again}",
        code=state,
        reason=failure.reason,
    )


def _print_state(job: trainer.TrainingJob, *, as_json: bool) -> None:
    if as_json:
        print_json(to_json(job))
    else:
        console().print(Text.assemble(job.job_id, " ", state_text(state_name(job.state))))


def _facts(job: trainer.TrainingJob) -> Iterable[tuple[str, str | Text]]:
    yield "job", job.job_id
    yield "state", state_text(state_name(job.state))
    if job.state not in ENDED:
        yield "stage", stage_title(job.stage)
        yield "progress", _progress(job.progress)
    yield "created", when(job.create_time)
    yield "started", when(job.start_time)
    yield "ended", when(job.end_time)
    yield "attempt", str(job.attempt) if job.attempt > 1 else ""
    yield "data digest", job.dataset_digest
    if job.HasField("failure"):
        yield "failed in", stage_name(job.failure.stage)
        yield "reason", f"{job.failure.reason}: {job.failure.message}"
    if job.HasField("result"):
        yield from outcome.facts(job.result)


def _progress(progress: trainer.Progress) -> str:
    if not progress.step:
        return ""
    eta = f"  ETA {duration(progress.eta.ToTimedelta().total_seconds())}" if progress.HasField("eta") else ""
    return f"{progress.step}/{progress.total_steps or '?'}  {figures(progress)}{eta}"


def _print_validation(found: trainer.ValidateDatasetResponse) -> None:
    print_facts(
        [
            ("usable", Text("yes", "green") if found.is_usable else Text("no", "red")),
            ("format", found.format),
            ("rows", f"{found.rows}, usable {found.usable_rows}, truncated {found.truncated_rows}"),
            (
                "tokens",
                f"{found.total_tokens:,}, trained {found.trained_tokens:,}" if found.total_tokens else "",
            ),
            ("longest row", f"{found.longest_row_tokens:,} tokens" if found.longest_row_tokens else ""),
            ("digest", found.digest),
        ]
    )
    if found.preview:
        console().print("\nFirst row; the loss is computed on what is green:")
        parts = [(plain(part.text), "green" if part.is_trained else "dim") for part in found.preview]
        console().print(Text.assemble(*parts))
    if found.findings:
        console().print()
        rows = [
            (str(each.line), Text("error", "red") if each.is_error else "remark", each.field, each.reason)
            for each in found.findings
        ]
        print_table(("LINE", "KIND", "FIELD", "REASON"), rows, empty="")


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
