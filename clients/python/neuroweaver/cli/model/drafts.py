"""The options of which a version is made. What only the server can know is left to it to refuse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from google.protobuf import json_format
from google.protobuf.message import Message
from typer import Option

from neuroweaver.cli.arguments.spec_file import read_fields
from neuroweaver.cli.arguments.values import pair
from neuroweaver.cli.terminal.failures import BadInput
from neuroweaver.v1 import registry_pb2 as registry

Level = Literal["major", "minor", "patch", "prerelease"]
State = Literal["draft", "trained", "validated", "deployed", "deprecated", "archived"]
FirstState = Literal["draft", "trained", "validated"]

Tags = Annotated[
    list[str] | None, Option("--tag", metavar="NAME=VALUE", help="A free label; repeat for several.")
]
MetricOptions = Annotated[
    list[str] | None,
    Option(
        "--metric",
        metavar="NAME=VALUE",
        help="A number; append :higher or :lower for what is better. Repeat for several.",
    ),
]
MetricsFile = Annotated[
    Path | None,
    Option(
        "--metrics",
        help="YAML or JSON: by name a number, or value, direction (higher, lower), unit, interval, "
        "samples. With samples, `compare` can test a difference.",
    ),
]

_BASE: Final = "The base model"
_DIRECTIONS: Final = {
    "": registry.METRIC_DIRECTION_UNSPECIFIED,
    "higher": registry.METRIC_DIRECTION_HIGHER_IS_BETTER,
    "lower": registry.METRIC_DIRECTION_LOWER_IS_BETTER,
}


def level_of(level: Level) -> registry.BumpLevel.ValueType:
    return registry.BumpLevel.Value(f"BUMP_LEVEL_{level.upper()}")


def state_of(state: State) -> registry.VersionState.ValueType:
    return registry.VersionState.Value(f"VERSION_STATE_{state.upper()}")


def tags_of(given: Iterable[str] | None) -> dict[str, str]:
    """From `name=value` texts. Raises BadInput."""
    return dict(pair(text, "--tag") for text in given or ())


def metrics_of(given: Iterable[str] | None, file: Path | None) -> dict[str, registry.Metric]:
    """Those of the file, overridden by those from `name=value` texts. Raises BadInput."""
    fields = read_fields(file, "--metrics") if file else {}
    metrics = {name: _metric_of(name, value) for name, value in fields.items()}
    return {**metrics, **dict(map(_metric, given or ()))}


def draft_of(
    *,
    version: Annotated[str, Option(metavar="X.Y.Z", help="The version to create.")] = "",
    bump: Annotated[
        Level | None, Option(metavar="LEVEL", help="Raise major, minor, patch or prerelease. Default: minor.")
    ] = None,
    parent: Annotated[
        str, Option(metavar="X.Y.Z", help="Inherit config, tags and base model from this version.")
    ] = "",
    description: Annotated[str, Option("--description", "-m", help="What changed.")] = "",
    state: Annotated[
        FirstState | None,
        Option(metavar="STATE", help="draft, trained or validated. Default: trained if it has files."),
    ] = None,
    config: Annotated[
        Path | None, Option(help="YAML or JSON: how it was made. Its values override the parent's.")
    ] = None,
    metric: MetricOptions = None,
    metrics: MetricsFile = None,
    tag: Tags = None,
    base: Annotated[str, Option(metavar="NAME", help="Its name.", rich_help_panel=_BASE)] = "",
    base_digest: Annotated[
        str, Option(metavar="SHA256", help="Digest of its weights.", rich_help_panel=_BASE)
    ] = "",
    tokenizer_digest: Annotated[
        str, Option(metavar="SHA256", help="Digest of its tokenizer.", rich_help_panel=_BASE)
    ] = "",
    chat_template_digest: Annotated[
        str, Option(metavar="SHA256", help="Digest of its chat template.", rich_help_panel=_BASE)
    ] = "",
    context_length: Annotated[
        int | None, Option(min=0, metavar="TOKENS", help="Its longest context.", rich_help_panel=_BASE)
    ] = None,
) -> registry.CreateModelVersionRequest:
    """The request, except for the model and the files. Raises BadInput naming the option."""
    if version and bump:
        raise BadInput("cannot be combined with --bump", "--version")
    pin = registry.BasePin(
        name=base,
        model_digest=base_digest,
        tokenizer_digest=tokenizer_digest,
        chat_template_digest=chat_template_digest,
        context_length=context_length or 0,
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
    )
    if config:
        _fill(request.config, read_fields(config, "--config"), "--config")
    return request


def _metric(text: str) -> tuple[str, registry.Metric]:
    name, measured = pair(text, "--metric")
    value, _, direction = measured.partition(":")
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
    """Raises BadInput for what protobuf JSON cannot hold, such as a YAML date."""
    try:
        json_format.ParseDict(dict(fields), message)
    except (json_format.ParseError, TypeError, ValueError, RecursionError) as error:
        where = f"{name}: " if name else ""
        raise BadInput(f"{where}{error}", option) from error
