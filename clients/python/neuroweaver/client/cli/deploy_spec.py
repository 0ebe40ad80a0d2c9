"""The options of `deploy plan` and `apply`: a spec from a file or from what is there, changed by options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import grpc
import typer
import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from neuroweaver.client.cli.deploy_names import found
from neuroweaver.client.cli.failures import BadInput, talking_to
from neuroweaver.client.cli.references import exact
from neuroweaver.client.cli.spec_file import read_fields, seconds_of, to_spec
from neuroweaver.client.connection import Client
from neuroweaver.v1 import deployer_pb2 as pb

Fields = dict[str, Any]

_SCALE: Final = "How many replicas"
_REPLICA: Final = "What each replica may use"
_ROLLOUT: Final = "How a new version takes over"


def with_spec_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the options of a spec; they arrive as `spec` (a path or None) and `changes` (fields)."""
    own = inspect.signature(command, eval_str=True).parameters
    options = inspect.signature(_changes, eval_str=True).parameters
    given = [each for name, each in own.items() if name not in {"spec", "changes"}]
    parameters = sorted(
        [*given, _SPEC, *options.values()], key=lambda each: (each.kind, each.name == "as_json")
    )

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        changes = _changes(**{name: arguments.pop(name) for name in options})
        command(changes=changes, **arguments)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def spec_of(
    target: tuple[str, str], spec: Path | None, changes: Fields, present: pb.Deployment | None
) -> pb.DeploymentSpec:
    """The options over the file, or else over the present spec.

    target: a model, and a version as RPCs name it. Raises BadInput naming the field.
    """
    fields: Fields = {}
    if spec:
        fields = read_fields(spec, pb.DeploymentSpec)
    elif present:
        fields = json_format.MessageToDict(present.spec, preserving_proto_field_name=True)
    model, version = target
    if version.startswith("@"):
        changes = {**changes, "alias": version.removeprefix("@")}
    elif version:
        with talking_to("registry") as registry:
            changes = {**changes, "version": exact(registry, model, version)}
    return to_spec(laid_over(pb.DeploymentSpec.DESCRIPTOR, fields, changes), pb.DeploymentSpec)


def present_deployment(client: Client, model: str, name: str) -> pb.Deployment | None:
    """None if there is none, or none any more."""
    try:
        deployment = found(client, model, name)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise
    return None if deployment.state == pb.DEPLOYMENT_STATE_DELETED else deployment


def laid_over(kind: Descriptor, fields: Mapping[str, Any], changes: Mapping[str, Any]) -> Fields:
    """`fields` with `changes`: groups are merged, all else is replaced, None removes.

    Of a oneof only what is changed stays.
    """
    result = dict(fields)
    for name, value in changes.items():
        field = kind.fields_by_name.get(name)
        for other in _rivals(field):
            result.pop(other, None)
        before = result.get(name)
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping) and field and field.message_type:
            result[name] = laid_over(field.message_type, before if isinstance(before, Mapping) else {}, value)
        else:
            result[name] = value
    return result


def _rivals(field: FieldDescriptor | None) -> Iterator[str]:
    if field and field.containing_oneof:
        yield from (each.name for each in field.containing_oneof.fields if each.name != field.name)


_SPEC: Final = inspect.Parameter(
    "spec",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Option(
            "--spec",
            "-f",
            metavar="FILE",
            help="YAML or JSON: all of a DeploymentSpec; what is not in it takes its default. Without a "
            "file the spec that is there is changed by the options.",
            show_default=False,
        ),
    ],
)


def _changes(
    *,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any field, as engine.max_batch_size=32; null removes it. Repeat for several.",
            show_default=False,
        ),
    ] = None,
    backend: Annotated[
        Literal["local", "kubernetes"] | None,
        typer.Option(help="Where it runs. Default: the server's.", show_default=False),
    ] = None,
    backup: Annotated[
        str,
        typer.Option(
            metavar="MODEL[/NAME]", help="Takes the traffic when this one is unhealthy.", show_default=False
        ),
    ] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A free label; repeat for several.", show_default=False),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(min=0, help="A fixed number. Default 1.", show_default=False, rich_help_panel=_SCALE),
    ] = None,
    fewest: Annotated[
        int | None,
        typer.Option(
            "--min", min=0, help="Autoscaling: fewest replicas.", show_default=False, rich_help_panel=_SCALE
        ),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option(
            "--max", min=1, help="Autoscaling: most replicas.", show_default=False, rich_help_panel=_SCALE
        ),
    ] = None,
    concurrency: Annotated[
        float | None,
        typer.Option(
            "--target-concurrency",
            help="Autoscaling: aimed requests per replica.",
            show_default=False,
            rich_help_panel=_SCALE,
        ),
    ] = None,
    cpu: Annotated[
        str,
        typer.Option(
            metavar="CORES", help="Set aside, as 2 or 500m.", show_default=False, rich_help_panel=_REPLICA
        ),
    ] = "",
    memory: Annotated[
        str,
        typer.Option(
            metavar="BYTES",
            help="Set aside, as 2Gi; also its limit, unless --set resources.memory_limit=4Gi says another.",
            show_default=False,
            rich_help_panel=_REPLICA,
        ),
    ] = "",
    gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs.", show_default=False, rich_help_panel=_REPLICA)
    ] = None,
    replacement: Annotated[
        Literal["surge", "recreate", "swap_adapter"] | None,
        typer.Option(help="Default: chosen by the server.", show_default=False, rich_help_panel=_ROLLOUT),
    ] = None,
    canary: Annotated[
        str,
        typer.Option(
            metavar="10:5m,50:30m",
            help="Shares of the traffic in percent, each with its bake time; none for no canary.",
            show_default=False,
            rich_help_panel=_ROLLOUT,
        ),
    ] = "",
    check: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=LIMIT",
            help="What the canary is held to: error_rate=0.05; or against the stable revision, as "
            "latency_p95=+10%, cost_per_request=+0.001, judged_quality=+0.02. Repeat for several.",
            show_default=False,
            rich_help_panel=_ROLLOUT,
        ),
    ] = None,
) -> Fields:
    """The fields that were given. Raises BadInput naming the option."""
    if replicas is not None and (fewest, most, concurrency) != (None, None, None):
        raise BadInput("is a fixed number, and excludes --min, --max and --target-concurrency", "--replicas")
    changes: Fields = {}
    for path, value in (
        ("backend", backend),
        ("replicas", replicas),
        ("autoscaling.min_replicas", fewest),
        ("autoscaling.max_replicas", most),
        ("autoscaling.target_concurrency", concurrency),
        ("resources.cpu_request", cpu or None),
        ("resources.memory_request", memory or None),
        ("resources.gpus", gpus),
        ("rollout.replacement", replacement),
        ("rollout.canary.steps", _steps(canary) if canary and canary != "none" else None),
        ("rollout.canary.analysis.checks", [*map(_check, check)] if check else None),
        ("recovery.backup", backup_of(backup, "--backup") if backup else None),
        ("labels", dict(_pair(each, "--label") for each in label) if label else None),
    ):
        if value is not None:
            _put(changes, path, value)
    if memory:
        # The limit that is there may be the default of what was set aside before.
        _put(changes, "resources.memory_limit", None)
    if canary == "none":
        _put(changes, "rollout.canary", None)
    for each in setting or ():
        path, text = _pair(each, "--set")
        _put(changes, path, _literal(text))
    return changes


def backup_of(text: str, option: str) -> Fields:
    """From MODEL or MODEL/NAME. Raises BadInput."""
    model, slash, name = text.partition("/")
    if not model or (slash and not name):
        raise BadInput(f"{text!r} is not MODEL or MODEL/NAME", option)
    return {"model_id": model, "name": name} if name else {"model_id": model}


def _put(fields: Fields, path: str, value: Any) -> None:
    *groups, last = path.split(".")
    if not all((*groups, last)):
        raise BadInput(f"{path!r} is not a field such as engine.max_batch_size", "--set")
    for group in groups:
        inner = fields.get(group)
        fields[group] = inner = inner if isinstance(inner, dict) else {}
        fields = inner
    fields[last] = value


def _steps(text: str) -> list[Fields]:
    steps = []
    for part in text.split(","):
        weight, colon, bake = part.strip().partition(":")
        if not weight.isdecimal():
            raise BadInput(f"{part.strip()!r} is not PERCENT or PERCENT:BAKE_TIME", "--canary")
        step: Fields = {"weight_percent": int(weight)}
        if colon:
            step["bake_time"] = seconds_of(bake, "--canary")
        steps.append(step)
    return steps


def _check(text: str) -> Fields:
    metric, limit = _pair(text, "--check")
    try:
        if not limit.startswith("+"):
            return {"metric": metric, "absolute": float(limit)}
        if limit.endswith("%"):
            return {"metric": metric, "relative": float(limit[1:-1]) / 100}
        return {"metric": metric, "difference": float(limit[1:])}
    except ValueError as error:
        raise BadInput(f"{metric}: {limit!r} is none of 0.05, +0.01, +10%", "--check") from error


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise BadInput(f"{text!r} is not {'FIELD' if option == '--set' else 'NAME'}=VALUE", option)
    return name, value


def _literal(text: str) -> Any:
    """As YAML reads it: numbers, true, null, [lists] and {groups}; everything else is a text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{text!r} is not a value", "--set") from error
