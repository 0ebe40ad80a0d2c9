"""The options from which a version is made. What only the server can know is left to it to refuse."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from google.protobuf import json_format
from google.protobuf.message import Message

from neuroweaver.client.cli.config import read_config
from neuroweaver.client.cli.failures import BadInput
from neuroweaver.mesh.ids import new_id
from neuroweaver.v1 import registry_pb2 as registry

Level = Literal["major", "minor", "patch", "prerelease"]
State = Literal["draft", "trained", "validated", "deployed", "deprecated", "archived"]
FirstState = Literal["draft", "trained", "validated"]

Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="NAME=VALUE", help="A free label; repeat for several.", show_default=False),
]
MetricOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME=VALUE",
        help="A measured number; :higher or :lower behind it says what is better. Repeat for several.",
        show_default=False,
    ),
]
MetricsFile = Annotated[
    Path | None,
    typer.Option(
        "--metrics",
        help="YAML or JSON: by name a number, or value, direction (higher, lower), unit, interval, "
        "samples. Samples let `compare` test a difference.",
        show_default=False,
    ),
]

_BASE: Final = "The base model that it fits on"
_DIRECTIONS: Final = {
    "": registry.METRIC_DIRECTION_UNSPECIFIED,
    "higher": registry.METRIC_DIRECTION_HIGHER_IS_BETTER,
    "lower": registry.METRIC_DIRECTION_LOWER_IS_BETTER,
}


def with_version_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the options of a new version; they arrive as `draft`, a CreateModelVersionRequest."""
    own = inspect.signature(command, eval_str=True).parameters
    options = inspect.signature(_draft, eval_str=True).parameters
    given = [each for name, each in own.items() if name != "draft"]
    # Those by place first, as Python has it; --json at the end, as in the other commands.
    parameters = sorted([*options.values(), *given], key=lambda each: (each.kind, each in given))

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        draft = _draft(**{name: arguments.pop(name) for name in options})
        command(draft=draft, **arguments)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def level_of(level: Level) -> registry.BumpLevel.ValueType:
    return registry.BumpLevel.Value(f"BUMP_LEVEL_{level.upper()}")


def state_of(state: State) -> registry.VersionState.ValueType:
    return registry.VersionState.Value(f"VERSION_STATE_{state.upper()}")


def tags_of(given: Iterable[str] | None) -> dict[str, str]:
    """From `name=value` texts. Raises BadInput."""
    return dict(_pair("--tag", text) for text in given or ())


def metrics_of(given: Iterable[str] | None, file: Path | None) -> dict[str, registry.Metric]:
    """Of the file, and over them those from `name=value` texts. Raises BadInput."""
    return {**_read_metrics(file), **dict(map(_metric, given or ()))}


def _draft(
    *,
    version: Annotated[
        str, typer.Option(metavar="X.Y.Z", help="The version to create.", show_default=False)
    ] = "",
    bump: Annotated[
        Level | None,
        typer.Option(
            metavar="LEVEL",
            help="Or what to raise of the latest one: major, minor, patch, prerelease. Default minor.",
            show_default=False,
        ),
    ] = None,
    parent: Annotated[
        str,
        typer.Option(
            metavar="X.Y.Z", help="Inherit config, tags and base model from it.", show_default=False
        ),
    ] = "",
    description: Annotated[
        str, typer.Option("--description", "-m", help="What changed, in words.", show_default=False)
    ] = "",
    state: Annotated[
        FirstState | None,
        typer.Option(
            metavar="STATE",
            help="draft, trained or validated. Default: trained with files, else draft.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON that says how it was made; laid over the parent's.", show_default=False
        ),
    ] = None,
    metric: MetricOptions = None,
    metrics: MetricsFile = None,
    tag: Tags = None,
    base: Annotated[
        str, typer.Option(metavar="NAME", help="Its name.", show_default=False, rich_help_panel=_BASE)
    ] = "",
    base_digest: Annotated[
        str, typer.Option(metavar="SHA256", help="Of its weights.", show_default=False, rich_help_panel=_BASE)
    ] = "",
    tokenizer_digest: Annotated[
        str,
        typer.Option(metavar="SHA256", help="Of the tokenizer.", show_default=False, rich_help_panel=_BASE),
    ] = "",
    chat_template_digest: Annotated[
        str,
        typer.Option(
            metavar="SHA256", help="Of the chat template.", show_default=False, rich_help_panel=_BASE
        ),
    ] = "",
    context_length: Annotated[
        int,
        typer.Option(
            min=0, metavar="TOKENS", help="Longest context.", show_default=False, rich_help_panel=_BASE
        ),
    ] = 0,
) -> registry.CreateModelVersionRequest:
    """The request but for the model and the files. Raises BadInput naming the option."""
    if version and bump:
        raise BadInput("is either given or made by --bump, not both", "--version")
    pin = registry.BasePin(
        name=base,
        model_digest=base_digest,
        tokenizer_digest=tokenizer_digest,
        chat_template_digest=chat_template_digest,
        context_length=context_length,
    )
    request = registry.CreateModelVersionRequest(
        version=version,
        bump=level_of(bump) if bump else registry.BUMP_LEVEL_UNSPECIFIED,
        parent_version=parent,
        description=description,
        state=state_of(state) if state else registry.VERSION_STATE_UNSPECIFIED,
        metrics=metrics_of(metric, metrics),
        tags=tags_of(tag),
        base=pin if pin.ByteSize() else None,
        request_id=new_id(),
    )
    if config:
        _fill(request.config, _fields(config, "--config"), "--config")
    return request


def _metric(text: str) -> tuple[str, registry.Metric]:
    name, told = _pair("--metric", text)
    value, _, direction = told.partition(":")
    if direction not in _DIRECTIONS:
        raise BadInput(f"{name}: {direction} is neither higher nor lower", "--metric")
    return name, registry.Metric(value=_finite(name, value), direction=_DIRECTIONS[direction])


def _finite(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError as error:
        raise BadInput(f"{name}: {value!r} is not a number", "--metric") from error
    if not math.isfinite(number):
        raise BadInput(f"{name}: {value!r} is not a finite number", "--metric")
    return number


def _read_metrics(path: Path | None) -> dict[str, registry.Metric]:
    fields = _fields(path, "--metrics") if path else {}
    return {name: _metric_of(name, value) for name, value in fields.items()}


def _metric_of(name: str, value: Any) -> registry.Metric:
    """From a number, or from the fields of a Metric with its direction in short."""
    fields = dict(value) if isinstance(value, Mapping) else {"value": value}
    direction = fields.get("direction")
    if isinstance(direction, str) and direction in _DIRECTIONS:
        fields["direction"] = _DIRECTIONS[direction]
    metric = registry.Metric()
    _fill(metric, fields, "--metrics", name)
    return metric


def _fill(message: Message, fields: Mapping[str, Any], option: str, name: str = "") -> None:
    """Raises BadInput for what protobuf JSON does not hold, such as a date of YAML's."""
    try:
        json_format.ParseDict(dict(fields), message)
    except (json_format.ParseError, TypeError, ValueError, RecursionError) as error:
        where = f"{name}: " if name else ""
        raise BadInput(f"{where}{error}", option) from error


def _fields(path: Path, option: str) -> dict[str, Any]:
    """Of a YAML or JSON file. Raises BadInput naming `option`."""
    try:
        return read_config(path)
    except BadInput as error:
        [(_, told)] = error.violations
        raise BadInput(told, option) from error


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise BadInput(f"{text!r} is not NAME=VALUE", option)
    return name, value
