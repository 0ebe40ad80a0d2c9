"""The options of `deploy plan` and `apply`: a spec from a file or the present one, changed by options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import grpc
import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from typer import Option

from neuroweaver.cli.arguments.references import exact
from neuroweaver.cli.arguments.spec_file import read_fields, to_spec
from neuroweaver.cli.arguments.values import pair, seconds_of
from neuroweaver.cli.deploy.names import present
from neuroweaver.cli.terminal.failures import BadInput, talking_to
from neuroweaver.client.connection import Client
from neuroweaver.v1 import deployer_pb2 as pb

Fields = dict[str, Any]

_SCALE: Final = "How many replicas"
_REPLICA: Final = "What each replica may use"
_ROLLOUT: Final = "How a new version takes over"


Changes = tuple[Path | None, Fields]
"""A file with a whole spec, in place of the present one, and the fields laid over it."""


def spec_of(target: tuple[str, str], changes: Changes, before: pb.Deployment | None) -> pb.DeploymentSpec:
    """The options over the file, or else over the present spec.

    target: a model, and a version as RPCs name it. Raises BadInput naming the field.
    """
    base: Fields = {}
    file, fields = changes
    if file:
        base = read_fields(file)
    elif before:
        base = json_format.MessageToDict(before.spec, preserving_proto_field_name=True)
    model, version = target
    if version.startswith("@"):
        fields = {**fields, "alias": version.removeprefix("@")}
    elif version:
        with talking_to("registry") as registry:
            fields = {**fields, "version": exact(registry, model, version)}
    return to_spec(laid_over(pb.DeploymentSpec.DESCRIPTOR, base, fields), pb.DeploymentSpec)


def undeleted(client: Client, model: str, name: str) -> pb.Deployment | None:
    """The deployment; None if there is none, or it is deleted."""
    try:
        deployment = present(client, model, name)
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
        before = result.get(name)
        for rival in field.containing_oneof.fields if field and field.containing_oneof else ():
            result.pop(rival.name, None)
        result.pop(name, None)
        if isinstance(value, Mapping) and field and field.message_type:
            result[name] = laid_over(field.message_type, before if isinstance(before, Mapping) else {}, value)
        elif value is not None:
            result[name] = value
    return result


def changes_of(
    *,
    file: Annotated[
        Path | None,
        Option(
            "--spec",
            "-f",
            metavar="FILE",
            help="YAML or JSON: a whole DeploymentSpec; what it leaves out gets its default. Without a file, "
            "options change the present spec.",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any field, as engine.max_batch_size=32; null removes it. Repeat for several.",
        ),
    ] = None,
    backend: Annotated[
        Literal["local", "kubernetes"] | None, Option(help="Where it runs. Default: set by the server.")
    ] = None,
    backup: Annotated[
        str, Option(metavar="MODEL[/NAME]", help="Gets the traffic when this one is unhealthy.")
    ] = "",
    label: Annotated[
        list[str] | None, Option(metavar="NAME=VALUE", help="A free label; repeat for several.")
    ] = None,
    replicas: Annotated[
        int | None, Option(min=0, help="A fixed number. Default: 1.", rich_help_panel=_SCALE)
    ] = None,
    fewest: Annotated[
        int | None, Option("--min", min=0, help="Autoscaling: fewest replicas.", rich_help_panel=_SCALE)
    ] = None,
    most: Annotated[
        int | None, Option("--max", min=1, help="Autoscaling: most replicas.", rich_help_panel=_SCALE)
    ] = None,
    concurrency: Annotated[
        float | None,
        Option("--target-concurrency", help="Autoscaling: requests per replica.", rich_help_panel=_SCALE),
    ] = None,
    cpu: Annotated[
        str, Option(metavar="CORES", help="Reserved, such as 2 or 500m.", rich_help_panel=_REPLICA)
    ] = "",
    memory: Annotated[
        str,
        Option(
            metavar="BYTES",
            help="Reserved, such as 2Gi; also the limit, unless you --set resources.memory_limit.",
            rich_help_panel=_REPLICA,
        ),
    ] = "",
    gpus: Annotated[int | None, Option(min=0, help="GPUs per replica.", rich_help_panel=_REPLICA)] = None,
    replacement: Annotated[
        Literal["surge", "recreate", "swap_adapter"] | None,
        Option(help="Default: chosen by the server.", rich_help_panel=_ROLLOUT),
    ] = None,
    canary: Annotated[
        str,
        Option(
            metavar="10:5m,50:30m",
            help="Shares of the traffic in percent, each with its bake time; none: no canary.",
            rich_help_panel=_ROLLOUT,
        ),
    ] = "",
    check: Annotated[
        list[str] | None,
        Option(
            metavar="METRIC=LIMIT",
            help="What the canary must meet: error_rate=0.05; or, compared with the stable revision, "
            "latency_p95=+10%, cost_per_request=+0.001, judged_quality=+0.02. Repeat for several.",
            rich_help_panel=_ROLLOUT,
        ),
    ] = None,
) -> Changes:
    """What was given. Raises BadInput naming the option."""
    if replicas is not None and (fewest, most, concurrency) != (None, None, None):
        raise BadInput(
            "is a fixed number; it cannot be combined with --min, --max or --target-concurrency", "--replicas"
        )
    fields: Fields = {}
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
        ("labels", dict(pair(text, "--label") for text in label) if label else None),
    ):
        if value is not None:
            _put(fields, path, value)
    if memory:
        # The limit that is there may be the default of what was reserved before.
        _put(fields, "resources.memory_limit", None)
    if canary == "none":
        _put(fields, "rollout.canary", None)
    for text in setting or ():
        path, literal = pair(text, "--set", "FIELD=VALUE")
        _put(fields, path, _literal(literal))
    return file, fields


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
    metric, limit = pair(text, "--check")
    try:
        if not limit.startswith("+"):
            return {"metric": metric, "absolute": float(limit)}
        if limit.endswith("%"):
            return {"metric": metric, "relative": float(limit[1:-1]) / 100}
        return {"metric": metric, "difference": float(limit[1:])}
    except ValueError as error:
        raise BadInput(
            f"{metric}: {limit!r} is not a limit such as 0.05, +0.01 or +10%", "--check"
        ) from error


def _literal(text: str) -> Any:
    """As YAML reads it: numbers, true, null, [lists] and {groups}; everything else is text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{text!r} is not a value", "--set") from error
