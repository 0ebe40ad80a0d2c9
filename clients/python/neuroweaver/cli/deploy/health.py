"""`neuroweaver deploy metrics|health|thresholds|switch`: whether a model is fit to serve, and who serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.text import Text
from typer import Option

from neuroweaver.cli.arguments.references import Name, Reason
from neuroweaver.cli.arguments.values import span
from neuroweaver.cli.deploy.events import title
from neuroweaver.cli.deploy.names import DEFAULT, DeploymentName
from neuroweaver.cli.deploy.spec import backup_of
from neuroweaver.cli.terminal.confirm import Yes, asking
from neuroweaver.cli.terminal.failures import BadInput, Exit, talking_to
from neuroweaver.cli.terminal.names import spoken, styled
from neuroweaver.cli.terminal.output import AsJson, facts, listing, print_answer, print_view, stacked, when
from neuroweaver.client.connection import Client
from neuroweaver.client.text import duration, number, plain
from neuroweaver.v1 import deployer_pb2 as pb

_ROWS: Final[Sequence[tuple[str, str, Callable[[float], str]]]] = (
    ("error rate", "error_rate", "{:.2%}".format),
    ("GPU use", "gpu_utilization", "{:.2%}".format),
    ("requests/s", "throughput_rps", number),
    ("latency p50 ms", "latency_p50_ms", number),
    ("latency p95 ms", "latency_p95_ms", number),
    ("latency p99 ms", "latency_p99_ms", number),
    ("first token p50 ms", "first_token_p50_ms", number),
    ("first token p95 ms", "first_token_p95_ms", number),
    ("tokens/s", "tokens_per_second", number),
    ("running", "running_requests", number),
    ("waiting", "waiting_requests", number),
    ("CPU cores", "cpu_cores", number),
    ("cost per request $", "cost_per_request", number),
    ("accuracy", "accuracy", number),
    ("judged quality", "judged_quality", number),
    ("memory", "memory_bytes", lambda value: f"{value / 2**20:,.0f} MiB"),
    ("GPU memory", "gpu_memory_bytes", lambda value: f"{value / 2**20:,.0f} MiB"),
)
"""Headings, fields, and how their values are written."""


def metrics(
    model: Name,
    *,
    name: DeploymentName = "",
    window: Annotated[str, Option(help="How far back, from 10s to 1d. Default: 5m.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show recent measurements, over all replicas and for each revision.

    Example: neuroweaver deploy metrics advisor --window 1h
    """
    request = pb.GetDeploymentMetricsRequest(model_id=model, name=name, window=span(window, "--window"))
    with talking_to("deployer") as client:
        print_answer(client.deployer.GetDeploymentMetrics(request), _measured, as_json=as_json)


def health(model: Name, *, name: DeploymentName = "", as_json: AsJson = False) -> None:
    """Show whether a model is fit to serve; exits with 1 if it is UNHEALTHY.

    Example: neuroweaver deploy health advisor
    """
    with talking_to("deployer") as client:
        state = _health(client, model, name)
    print_answer(state, _view, as_json=as_json)
    if state.state == pb.HEALTH_STATE_UNHEALTHY:
        raise typer.Exit(Exit.FAILED)


def thresholds(
    model: Name,
    *,
    name: DeploymentName = "",
    min_accuracy: Annotated[float | None, Option(help="In [0, 1]. Default: 0.85.")] = None,
    max_latency_ms: Annotated[float | None, Option(help="Of the 95th percentile. Default: 2000.")] = None,
    min_throughput_rps: Annotated[float | None, Option(help="Under load. Default: 10.")] = None,
    max_cost_per_request: Annotated[float | None, Option(help="In USD. Default: 0.01.")] = None,
    max_error_rate: Annotated[float | None, Option(help="In [0, 1]. Default: 0.05.")] = None,
    window: Annotated[str, Option(help="The period that is measured. Default: 5m.")] = "",
    min_requests: Annotated[int | None, Option(help="Below this, no verdict is given. Default: 30.")] = None,
    defaults: Annotated[
        bool, Option("--defaults", help="Start from the defaults, not from the present thresholds.")
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Show the thresholds beyond which a model is unfit, or change those that are given.

    Example: neuroweaver deploy thresholds advisor --max-latency-ms 1500 -m "as promised to users"
    """
    given = pb.ModelThresholds(
        min_accuracy=min_accuracy,
        max_latency_ms=max_latency_ms,
        min_throughput_rps=min_throughput_rps,
        max_cost_per_request=max_cost_per_request,
        max_error_rate=max_error_rate,
        window=span(window, "--window"),
        min_requests=min_requests,
    )
    with talking_to("deployer") as client:
        state = _health(client, model, name)
        if defaults or given.ListFields():
            wanted = pb.ModelThresholds()
            if not defaults:
                wanted.CopyFrom(state.configured_thresholds)
            wanted.MergeFrom(given)
            request = pb.SetThresholdsRequest(
                model_id=model, name=name, thresholds=wanted, reason=reason, etag=state.etag
            )
            state = client.deployer.SetThresholds(request)
    print_answer(state, _view, as_json=as_json)


def switch(
    model: Name,
    *,
    name: DeploymentName = "",
    to: Annotated[str, Option("--to", metavar="MODEL[/NAME]", help="Default: the deployment's backup.")] = "",
    back: Annotated[bool, Option("--back", help="Back to the model itself.")] = False,
    reason: Annotated[str, Option("--reason", "-m", help="Why, in words, for the audit. Required.")] = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send a deployment's traffic to its backup model, another one, or back; the target must be ready.

    Example: neuroweaver deploy switch advisor --to advisor/spare -m "answers are wrong"
    """
    ask = asking(yes=yes, as_json=as_json)
    if to and back:
        raise BadInput("cannot be combined with --to", "--back")
    if not reason:
        raise BadInput("is required: a switch is audited", "--reason")
    target = None
    if to:
        target = pb.BackupModel(**backup_of(to, "--to"))
    elif back:
        target = pb.BackupModel(model_id=model, name=name or DEFAULT)
    with talking_to("deployer") as client:
        if not yes:
            print_view(_serving(_health(client, model, name)))
        where = title(target.model_id, target.name) if target else "its backup"
        ask(f"Send the traffic of {title(model, name)} to {where}?")
        request = pb.SwitchModelRequest(model_id=model, name=name, target=target, reason=reason)
        print_answer(client.deployer.SwitchModel(request), _view, as_json=as_json)


def _health(client: Client, model: str, name: str) -> pb.ModelHealth:
    return client.deployer.GetModelHealth(pb.GetModelHealthRequest(model_id=model, name=name))


def _measured(measured: pb.DeploymentMetrics) -> RenderableType:
    period = Text(f"{when(measured.start_time)} to {when(measured.end_time)}", "dim")
    columns = ["", "all", *(f"{revision.revision} ({revision.version})" for revision in measured.revisions)]
    rows = _rows([measured.total, *(revision.metrics for revision in measured.revisions)])
    shown = listing(columns, rows)
    missing = (
        Text(f"! {plain(replica)} could not be reached; the numbers do not include it", "yellow")
        for replica in measured.missing_replicas
    )
    return Group(period, shown, *missing)


def _rows(columns: Sequence[Any]) -> Iterator[list[str]]:
    """A row for each value that was measured in at least one column."""
    yield ["requests", *(f"{column.requests:,}" for column in columns)]
    yield ["failed", *(f"{column.errors:,}" for column in columns)]
    for heading, field, written in _ROWS:
        if any(column.HasField(field) for column in columns):
            values = (
                written(getattr(column, field)) if column.HasField(field) else "-" for column in columns
            )
            yield [heading, *values]


def _view(state: pb.ModelHealth) -> RenderableType:
    configured = state.configured_thresholds
    period = duration(configured.window.ToTimedelta().total_seconds())
    measured = f"over {period}, once there are {configured.min_requests} requests"
    summary = facts(
        [
            ("deployment", title(state.model_id, state.name)),
            ("health", styled(state, "state")),
            ("reason", state.reason),
            ("version", state.version),
            ("replicas", f"{state.ready_replicas} of {state.desired_replicas} ready"),
            ("last token", when(state.last_token_time)),
            ("traffic", _serving(state)),
            ("measured", measured if configured.HasField("window") else ""),
        ]
    )
    columns = ("THRESHOLD", "LIMIT", "VALUE", "", "SINCE", "REQUESTS")
    rows = map(_threshold, state.thresholds)
    thresholds = listing(columns, rows) if state.thresholds else None
    return stacked(summary, thresholds)


def _serving(state: pb.ModelHealth) -> Text:
    if not state.is_switched:
        return Text("served by the model itself")
    return Text(f"goes to {title(state.serving.model_id, state.serving.name)}", "yellow")


def _threshold(threshold: pb.ThresholdStatus) -> Sequence[str | Text]:
    has_value = threshold.HasField("value")
    verdict = Text("broken", "bold red") if threshold.is_breached else Text("met", "green")
    return (
        spoken(threshold, "kind"),
        f"{threshold.limit:g}",
        f"{threshold.value:.4g}" if has_value else "-",
        verdict if has_value else Text("no data", "dim"),
        when(threshold.breach_time),
        f"{threshold.requests:,}",
    )
