"""`neuroweaver deploy metrics|health|thresholds|switch`: whether a model is fit to serve, and who serves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Final

import typer
from google.protobuf.duration_pb2 import Duration
from rich.text import Text

from neuroweaver.client.cli.confirm import Yes, confirm, refuse_unasked
from neuroweaver.client.cli.deploy_names import DEFAULT, DeploymentName, Model
from neuroweaver.client.cli.deploy_spec import backup_of
from neuroweaver.client.cli.failures import EPILOG, BadInput, Exit, talking_to
from neuroweaver.client.cli.output import AsJson, console, print_facts, print_json, print_table, to_json, when
from neuroweaver.client.cli.references import Reason
from neuroweaver.client.cli.spec_file import seconds_of
from neuroweaver.client.connection import Client
from neuroweaver.client.deployments import title
from neuroweaver.client.names import short_name
from neuroweaver.client.text import duration, number, plain
from neuroweaver.mesh.ids import new_id
from neuroweaver.v1 import deployer_pb2 as pb

_HEALTH: Final = {
    pb.HEALTH_STATE_HEALTHY: "green",
    pb.HEALTH_STATE_DEGRADED: "yellow",
    pb.HEALTH_STATE_UNHEALTHY: "bold red",
}
_ROWS: Final = (
    ("requests/s", "throughput_rps"),
    ("latency p50 ms", "latency_p50_ms"),
    ("latency p95 ms", "latency_p95_ms"),
    ("latency p99 ms", "latency_p99_ms"),
    ("first token p50 ms", "first_token_p50_ms"),
    ("first token p95 ms", "first_token_p95_ms"),
    ("tokens/s", "tokens_per_second"),
    ("running", "running_requests"),
    ("waiting", "waiting_requests"),
    ("CPU cores", "cpu_cores"),
    ("cost per request $", "cost_per_request"),
    ("accuracy", "accuracy"),
    ("judged quality", "judged_quality"),
)
_SHARES: Final = (("error rate", "error_rate"), ("GPU use", "gpu_utilization"))
_BYTES: Final = (("memory", "memory_bytes"), ("GPU memory", "gpu_memory_bytes"))


def metrics(
    model: Model,
    *,
    name: DeploymentName = "",
    window: Annotated[
        str, typer.Option(help="How far back, from 10s to 1d. Default 5m.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show what was measured lately, over all replicas and for each revision.

    Example: neuroweaver deploy metrics advisor --window 1h
    """
    request = pb.GetDeploymentMetricsRequest(
        model_id=model, name=name, window=_span(window, "--window") if window else None
    )
    with talking_to("deployer") as client:
        measured = client.deployer.GetDeploymentMetrics(request)
    if as_json:
        print_json(to_json(measured))
        return
    columns = [("all", measured.total)]
    columns += [(f"{each.revision} ({each.version})", each.metrics) for each in measured.revisions]
    console().print(Text(f"{when(measured.start_time)} to {when(measured.end_time)}", "dim"))
    print_table(("", *(plain(head) for head, _ in columns)), _rows([each for _, each in columns]), empty="")
    for replica in measured.missing_replicas:
        console().print(
            Text(f"! {plain(replica)} could not be asked; it is missing from the numbers", "yellow")
        )


def health(model: Model, *, name: DeploymentName = "", as_json: AsJson = False) -> None:
    """Show whether a model is fit to serve; ends with 1 if it is UNHEALTHY.

    Example: neuroweaver deploy health advisor
    """
    with talking_to("deployer") as client:
        state = _health(client, model, name)
    _show(state, as_json=as_json)
    if state.state == pb.HEALTH_STATE_UNHEALTHY:
        raise typer.Exit(Exit.FAILED)


def thresholds(
    model: Model,
    *,
    name: DeploymentName = "",
    min_accuracy: Annotated[
        float | None, typer.Option(help="In [0, 1]. Default 0.85.", show_default=False)
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Of the 95th percentile. Default 2000.", show_default=False)
    ] = None,
    min_throughput_rps: Annotated[
        float | None, typer.Option(help="Under load. Default 10.", show_default=False)
    ] = None,
    max_cost_per_request: Annotated[
        float | None, typer.Option(help="In USD. Default 0.01.", show_default=False)
    ] = None,
    max_error_rate: Annotated[
        float | None, typer.Option(help="In [0, 1]. Default 0.05.", show_default=False)
    ] = None,
    window: Annotated[
        str, typer.Option(help="What values are taken over. Default 5m.", show_default=False)
    ] = "",
    min_requests: Annotated[
        int | None, typer.Option(help="Before anything is said. Default 30.", show_default=False)
    ] = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Begin with the defaults, not with what is set.")
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Show the thresholds from which a model counts as unfit, or change those that are given.

    Example: neuroweaver deploy thresholds advisor --max-latency-ms 1500 -m "as promised to users"
    """
    given = pb.ModelThresholds(
        min_accuracy=min_accuracy,
        max_latency_ms=max_latency_ms,
        min_throughput_rps=min_throughput_rps,
        max_cost_per_request=max_cost_per_request,
        max_error_rate=max_error_rate,
        window=_span(window, "--window") if window else None,
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
                model_id=model,
                name=name,
                thresholds=wanted,
                reason=reason,
                etag=state.etag,
                request_id=new_id(),
            )
            state = client.deployer.SetThresholds(request)
    _show(state, as_json=as_json)


def switch(
    model: Model,
    *,
    name: DeploymentName = "",
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="MODEL[/NAME]", help="Default: the deployment's backup.", show_default=False
        ),
    ] = "",
    back: Annotated[bool, typer.Option("--back", help="To the model itself again.")] = False,
    reason: Annotated[
        str,
        typer.Option("--reason", "-m", help="Why, in words, for the audit. Required.", show_default=False),
    ] = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send a deployment's traffic to its backup model, to another one, or back; that must be ready to serve.

    Example: neuroweaver deploy switch advisor --to advisor/spare -m "answers are wrong"
    """
    refuse_unasked(yes=yes, as_json=as_json)
    if to and back:
        raise BadInput("excludes --to", "--back")
    if not reason:
        raise BadInput("is required: a switch is audited", "--reason")
    target = None
    if to:
        target = pb.BackupModel(**backup_of(to, "--to"))
    elif back:
        target = pb.BackupModel(model_id=model, name=name or DEFAULT)
    with talking_to("deployer") as client:
        if not yes:
            console().print(_serving(_health(client, model, name)))
        where = title(target.model_id, target.name) if target else "its backup"
        confirm(f"Send the traffic of {title(model, name)} to {where}?", yes=yes, as_json=as_json)
        request = pb.SwitchModelRequest(
            model_id=model, name=name, target=target, reason=reason, request_id=new_id()
        )
        state = client.deployer.SwitchModel(request)
    _show(state, as_json=as_json)


def register(app: typer.Typer) -> None:
    for command in (metrics, health, thresholds, switch):
        app.command(epilog=EPILOG)(command)


def _health(client: Client, model: str, name: str) -> pb.ModelHealth:
    return client.deployer.GetModelHealth(pb.GetModelHealthRequest(model_id=model, name=name))


def _span(text: str, option: str) -> Duration:
    span = Duration()
    span.FromMilliseconds(round(seconds_of(text, option) * 1000))
    return span


def _rows(columns: Sequence[Any]) -> Iterable[list[str]]:
    """A row each of what was measured of at least one."""
    yield ["requests", *(f"{each.requests:,}" for each in columns)]
    yield ["failed", *(f"{each.errors:,}" for each in columns)]
    told: tuple[tuple[tuple[tuple[str, str], ...], Callable[[float], str]], ...] = (
        (_SHARES, lambda value: f"{value:.2%}"),
        (_ROWS, number),
        (_BYTES, lambda value: f"{value / 2**20:,.0f} MiB"),
    )
    for rows, form in told:
        for words, field in rows:
            if any(each.HasField(field) for each in columns):
                values = (form(getattr(each, field)) if each.HasField(field) else "-" for each in columns)
                yield [words, *values]


def _show(state: pb.ModelHealth, *, as_json: bool) -> None:
    if as_json:
        print_json(to_json(state))
        return
    configured = state.configured_thresholds
    print_facts(
        [
            ("deployment", title(state.model_id, state.name)),
            (
                "health",
                Text(short_name(pb.HealthState.DESCRIPTOR, state.state), _HEALTH.get(state.state, "dim")),
            ),
            ("reason", state.reason),
            ("version", state.version),
            ("replicas", f"{state.ready_replicas} of {state.desired_replicas} ready"),
            ("last token", when(state.last_token_time)),
            ("traffic", _serving(state)),
            (
                "measured",
                f"over {duration(configured.window.ToTimedelta().total_seconds())}, "
                f"from {configured.min_requests} requests on"
                if configured.HasField("window")
                else "",
            ),
        ]
    )
    if state.thresholds:
        console().print()
        rows = ([*_threshold(each)] for each in state.thresholds)
        print_table(("THRESHOLD", "LIMIT", "VALUE", "", "SINCE", "REQUESTS"), rows, empty="")


def _serving(state: pb.ModelHealth) -> Text:
    if not state.is_switched:
        return Text("served by the model itself")
    return Text(f"goes to {title(state.serving.model_id, state.serving.name)}", "yellow")


def _threshold(found: pb.ThresholdStatus) -> Iterable[str | Text]:
    is_known = found.HasField("value")
    yield short_name(pb.ThresholdKind.DESCRIPTOR, found.kind).lower().replace("_", " ")
    yield f"{found.limit:g}"
    yield f"{found.value:.4g}" if is_known else "-"
    if not is_known:
        yield Text("no data", "dim")
    else:
        yield Text("broken", "bold red") if found.is_breached else Text("kept", "green")
    yield when(found.breach_time)
    yield f"{found.requests:,}"
