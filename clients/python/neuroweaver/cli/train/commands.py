"""`neuroweaver train`: jobs, their progress and their data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text
from typer import Argument, Option

from neuroweaver.cli.arguments.options import with_options
from neuroweaver.cli.arguments.spec_file import read_fields
from neuroweaver.cli.terminal.failures import Exit, Failure, talking_to
from neuroweaver.cli.terminal.lazy import LazyGroup
from neuroweaver.cli.terminal.names import LEVEL_STYLES, styled
from neuroweaver.cli.terminal.output import (
    AsJson,
    console,
    facts,
    listing,
    print_answer,
    print_event,
    print_json,
    print_list,
    print_view,
    stacked,
    to_json,
    when,
)
from neuroweaver.cli.terminal.watching import display
from neuroweaver.cli.train.config import options_of, to_config
from neuroweaver.cli.train.progress import Board, figures
from neuroweaver.client.connection import Client
from neuroweaver.client.text import duration, plain
from neuroweaver.client.training_history import ENDED, stage_name, stage_title, state_name
from neuroweaver.report import outcome
from neuroweaver.report import report as job_report
from neuroweaver.v1 import trainer_pb2 as trainer

app = LazyGroup(
    panels={
        "Commands": {
            "train.commands": "start watch list show cancel resume logs validate templates report",
        }
    }
)

Job = Annotated[str, Argument(metavar="JOB", help="The job's id.")]
Watch = Annotated[bool, Option("--watch", "-w", help="Show the job's progress until it ends.")]


@with_options(options_of, into="options")
def start(
    *,
    options: dict[str, Any],
    config: Annotated[
        Path | None, Option(help="YAML or JSON with TrainingConfig's fields; options given beside it win.")
    ] = None,
    job_id: Annotated[str, Option(help="The job's id. Default: made by the server.")] = "",
    watch: Watch = False,
    as_json: AsJson = False,
) -> None:
    """Start a training job.

    With --watch --json, prints one line of JSON an event.

    Example: neuroweaver train start --model-name service-advisor --base-model smollm2-135m-instruct
    --specialization service_advisor --dataset builtin:automotive --watch
    """
    fields = {**(read_fields(config, "--config") if config else {}), **options}
    request = trainer.StartTrainingRequest(job_id=job_id, config=to_config(fields))
    with talking_to("trainer") as client:
        job = client.trainer.StartTraining(request)
        if watch:
            _watch(client, job, since=0, as_json=as_json)
        else:
            hint = f"\nWatch it: neuroweaver train watch {job.job_id}"
            print_answer(job, lambda _: _line(job).append(hint, "dim"), as_json=as_json)


def watch(
    job: Job,
    *,
    since: Annotated[int, Option(min=0, help="Only events after this sequence.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show a job's progress from its beginning until it ends; ends with 1 if the job did not succeed.

    Ctrl-C ends the watching, not the job. With --json, one line of JSON an event.

    Example: neuroweaver train watch 01J8 --json
    """
    with talking_to("trainer") as client:
        _watch(client, client.job(job), since=since, as_json=as_json)


def list_(
    *,
    state: Annotated[str, Option(help="Only jobs in this state, such as RUNNING.")] = "",
    model_name: Annotated[str, Option(help="Only jobs for this model.")] = "",
    limit: Annotated[int, Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first.

    Example: neuroweaver train list --state FAILED
    """
    terms = (f"state={state.upper()}" if state else "", f"model_name={model_name}" if model_name else "")
    columns = {
        "JOB": lambda job: job.job_id,
        "STATE": lambda job: styled(job, "state"),
        "STAGE": lambda job: stage_title(job.stage),
        "MODEL": lambda job: job.config.model_name,
        "VERSION": lambda job: job.result.version,
        "CREATED": lambda job: when(job.create_time),
    }
    with talking_to("trainer") as client:
        jobs = client.jobs(" AND ".join(filter(None, terms)), limit)
        print_list("jobs", jobs, columns, as_json=as_json)


def show(job: Job, *, as_json: AsJson = False) -> None:
    """Show a job: its state, its configuration and what came out.

    Example: neuroweaver train show 01J8
    """
    with talking_to("trainer") as client:
        print_answer(client.job(job), _picture, as_json=as_json)


def cancel(job: Job, *, as_json: AsJson = False) -> None:
    """Ask a job to stop; what is whole is kept, and it can be resumed.

    Example: neuroweaver train cancel 01J8
    """
    request = trainer.CancelTrainingRequest(job_id=job)
    with talking_to("trainer") as client:
        print_answer(client.trainer.CancelTraining(request), _line, as_json=as_json)


def resume(job: Job, *, watch: Watch = False, as_json: AsJson = False) -> None:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint.

    Example: neuroweaver train resume 01J8 --watch
    """
    with talking_to("trainer") as client:
        resumed = client.trainer.ResumeTraining(trainer.ResumeTrainingRequest(job_id=job))
        if watch:
            _watch(client, resumed, since=0, as_json=as_json)
        else:
            print_answer(resumed, _line, as_json=as_json)


def logs(
    job: Job,
    *,
    follow: Annotated[bool, Option("--follow", "-f", help="Go on until the job ends.")] = False,
    since: Annotated[int, Option(min=0, help="Only lines after this sequence.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print the log of a job's worker. With --json, one line of JSON a log line.

    Example: neuroweaver train logs 01J8 --follow
    """
    screen = console()
    with talking_to("trainer") as client:
        for line in client.watch_logs(job, since, follow=follow):
            if as_json:
                print_event(line)
            else:
                text = f"{when(line.time)} {line.level:<7} {plain(line.message)}"
                screen.print(Text(text, LEVEL_STYLES.get(line.level, "")), soft_wrap=True)


def validate(
    dataset: Annotated[str, Argument(help="As --dataset of `train start`.")],
    *,
    base_model: Annotated[str, Option(help="Counts tokens with its tokenizer.")] = "",
    specialization: Annotated[str, Option(help="Puts its system prompt in front.")] = "",
    max_seq_length: Annotated[int | None, Option(min=16, help="Longer rows are cut.")] = None,
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
        validated = client.trainer.ValidateDataset(request)
    print_answer(validated, _validation, as_json=as_json)
    if not validated.is_usable:
        raise typer.Exit(Exit.BAD_INPUT)


def templates(*, as_json: AsJson = False) -> None:
    """List the specialisations that a job can name.

    Example: neuroweaver train templates
    """
    columns = {
        "ID": lambda template: template.id,
        "TITLE": lambda template: template.title,
        "PROMPTS": lambda template: str(len(template.evaluation_prompts)),
        "DESCRIPTION": lambda template: template.description,
    }
    with talking_to("trainer") as client:
        answer = client.trainer.ListTemplates(trainer.ListTemplatesRequest())
    print_list("templates", answer.templates, columns, as_json=as_json)


def report(
    job: Job,
    *,
    output: Annotated[Path, Option("--output", "-o", help="The HTML page to write.")] = Path("report.html"),
    png: Annotated[Path | None, Option(help="Also draw the curves here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a page about a job that has ended: curves, stages, both models' answers, lineage.

    Needs the extra `report` (matplotlib).

    Example: neuroweaver train report 01J8 -o report.html
    """
    with talking_to("trainer") as client:
        ended = client.job(job)
        if ended.state not in ENDED:
            message = f"the job is {state_name(ended.state)}; there is a report when it has ended"
            raise Failure(Exit.CONFLICT, message, code="FAILED_PRECONDITION")
        try:
            written = job_report.write(job_report.Report.gather(client, ended), output, png)
        except job_report.MissingLibrary as error:
            raise Failure(Exit.FAILED, str(error)) from error
    if as_json:
        print_json({"files": [str(path) for path in written]})
    else:
        print_view("\n".join(map(str, written)))


def _watch(client: Client, job: trainer.TrainingJob, *, since: int, as_json: bool) -> None:
    """Raises Failure if the job ended otherwise than well."""
    board = Board(job)
    with display(board, board.line, as_json=as_json) as shown:
        for event in client.watch_training(job.job_id, since, on_break=shown.interrupted):
            shown.show(event)
    ended = client.job(job.job_id)
    if ended.state != trainer.JOB_STATE_SUCCEEDED:
        raise _ended_badly(ended)
    if not as_json:
        print_view(Group(Text(), facts(_facts(ended))))


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


def _line(job: trainer.TrainingJob) -> Text:
    return Text.assemble(job.job_id, " ", styled(job, "state"))


def _picture(job: trainer.TrainingJob) -> RenderableType:
    config = to_json(job.config).items()
    return stacked(facts(_facts(job)), facts((name, _brief(value)) for name, value in config))


def _facts(job: trainer.TrainingJob) -> Iterator[tuple[str, str | Text]]:
    yield "job", job.job_id
    yield "state", styled(job, "state")
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


def _validation(answer: trainer.ValidateDatasetResponse) -> RenderableType:
    tokens, longest = answer.total_tokens, answer.longest_row_tokens
    summary = facts(
        [
            ("usable", Text("yes", "green") if answer.is_usable else Text("no", "red")),
            ("format", answer.format),
            ("rows", f"{answer.rows}, usable {answer.usable_rows}, truncated {answer.truncated_rows}"),
            ("tokens", f"{tokens:,}, trained {answer.trained_tokens:,}" if tokens else ""),
            ("longest row", f"{longest:,} tokens" if longest else ""),
            ("digest", answer.digest),
        ]
    )
    row = ((plain(part.text), "green" if part.is_trained else "dim") for part in answer.preview)
    preview = Group(Text("First row; the loss is computed on what is green:"), Text.assemble(*row))
    findings = (
        (
            str(finding.line),
            Text("error", "red") if finding.is_error else "remark",
            finding.field,
            finding.reason,
        )
        for finding in answer.findings
    )
    columns = ("LINE", "KIND", "FIELD", "REASON")
    return stacked(
        summary,
        preview if answer.preview else None,
        listing(columns, findings) if answer.findings else None,
    )


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
