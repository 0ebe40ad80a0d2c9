"""What a model server is started with: one JSON file, which the deployer writes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_type_hints

from neuroweaver.artifacts.file import File, is_inside
from neuroweaver.mesh.wire.json_values import Broken, Check, number, text, whole

WeightType = Literal["", "bf16", "fp16", "fp32"]
AdapterMode = Literal["merged", "switched"]

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_LARGEST_FILE: Final = 1 << 50


class BadConfig(Exception):
    """The configuration cannot be used; the text names the field."""


def _choice(enum: str, *choices: str) -> Check:
    """One of `choices`, also as the contract's enum writes it; the first where nothing is said."""

    def check(value: Any) -> str:
        word = text(value).lower().removeprefix(enum)
        word = choices[0] if word in {"", "unspecified"} else word
        if word not in choices:
            raise Broken(f"must be one of {', '.join(filter(None, choices))}")
        return word

    return check


def _digest(value: Any) -> str:
    if not _DIGEST.fullmatch(text(value)):
        raise Broken("is not a SHA-256 in hexadecimal")
    return str(value)


def _digest_or_none(value: Any) -> str:
    return _digest(value) if value != "" else ""


def _label(value: Any) -> int | str:
    if not isinstance(value, int | str):
        raise Broken("must be a number or a text")
    return value


def _path(value: Any) -> str:
    if not is_inside(text(value)):
        raise Broken(f"must lie under files_folder, not at {value!r}")
    return str(value)


_OF_FILE: Final[dict[str, Check]] = {"path": _path, "digest": _digest, "size_bytes": whole(0, _LARGEST_FILE)}


def files_of(value: Any) -> tuple[File, ...]:
    """The files of a JSON list. Raises Broken."""
    if not isinstance(value, list):
        raise Broken("must be a list")
    files = tuple(_file(item, f"[{at}]") for at, item in enumerate(value))
    if len({file.path for file in files}) < len(files):
        raise Broken("names a path twice")
    return files


def _file(value: Any, where: str) -> File:
    if not isinstance(value, dict):
        raise Broken("must be an object", where)
    fields = {}
    for name, check in _OF_FILE.items():
        try:
            fields[name] = check(value.get(name))
        except Broken as error:
            raise Broken(str(error), f"{where}.{name}") from error
    return File(**fields)


def listed(files: Iterable[File]) -> list[dict[str, Any]]:
    """As JSON, which `files_of` reads."""
    return [dataclasses.asdict(file) for file in files]


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """model, version: what requests call the model: `name` or `name@version`. `model` may be either.

    base_folder: of the model that an adapter among `files` fits on; empty where the files are a whole model.
    base_digest, tokenizer_digest, chat_template_digest: those of `BasePin`; empty: not checked.
    weight_type: empty is as stored.
    revision: of the deployment. drain_s: how long requests may still run after SIGTERM.
    max_context_tokens: of prompt and answer together; 0 is the model's own.
    stall_s: how long the engine may make no progress on its work before it counts as dead.
    probe_interval_s: how often an idle engine proves itself by a token of its own.
    memory_limit_bytes: beyond which whoever started it ends it; 0: there is no such limit.
    """

    model: Annotated[str, text] = ""
    version: Annotated[str, text] = ""
    revision: Annotated[int | str, _label] = ""
    host: Annotated[str, text] = "127.0.0.1"
    port: Annotated[int, whole(0, 65535)] = 0
    files_folder: Annotated[str, text] = ""
    files: Annotated[tuple[File, ...], files_of] = ()
    base_folder: Annotated[str, text] = ""
    base_digest: Annotated[str, _digest_or_none] = ""
    tokenizer_digest: Annotated[str, _digest_or_none] = ""
    chat_template_digest: Annotated[str, _digest_or_none] = ""
    weight_type: Annotated[WeightType, _choice("weight_type_", "", "bf16", "fp16", "fp32")] = ""
    adapter_mode: Annotated[AdapterMode, _choice("adapter_mode_", "merged", "switched")] = "merged"
    max_queue_size: Annotated[int, whole(0, 100_000)] = 256
    drain_s: Annotated[float, number(0, 86_400)] = 300.0
    max_context_tokens: Annotated[int, whole(0, 1 << 24)] = 0
    max_batch_size: Annotated[int, whole(1, 4096)] = 16
    stall_s: Annotated[float, number(0.1, 3600)] = 30.0
    probe_interval_s: Annotated[float, number(0.1, 3600)] = 10.0
    memory_limit_bytes: Annotated[int, whole(0, 1 << 50)] = 0

    @property
    def name(self) -> str:
        return self.model.partition("@")[0]

    def plain(self) -> dict[str, Any]:
        """As a JSON object, which `parse` reads."""
        written = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _OMITTED_AT_DEFAULT or getattr(self, field.name) != field.default
        }
        return written | {"files": listed(self.files)}


_CHECKS: Final[dict[str, Check]] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(ServingConfig, include_extras=True).items()
}
# So that the text of a configuration, by which pods are compared, does not change with every field.
_OMITTED_AT_DEFAULT: Final = frozenset({
    "max_context_tokens", "max_batch_size", "stall_s", "probe_interval_s", "memory_limit_bytes",
    "tokenizer_digest", "chat_template_digest",
})  # fmt: skip


def read(path: Path) -> ServingConfig:
    """The configuration in the JSON file `path`. Raises BadConfig."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadConfig(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise BadConfig(f"{path} must hold a JSON object")
    return parse(content)


def parse(content: dict[str, Any]) -> ServingConfig:
    """Raises BadConfig."""
    for name in content:
        if name not in _CHECKS:
            raise BadConfig(f"{name} is not a field of the configuration")
    config = ServingConfig(**{name: _checked(name, value) for name, value in content.items()})
    name, _, pinned = config.model.partition("@")
    if not name:
        raise BadConfig("model must name a model")
    if pinned and config.version not in {"", pinned}:
        raise BadConfig(f"version is {config.version!r}, but model says {pinned!r}")
    if not config.base_folder and not config.files_folder:
        raise BadConfig("files_folder is empty, and there is no base_folder")
    return dataclasses.replace(config, version=config.version or pinned)


def _checked(name: str, value: Any) -> Any:
    try:
        return _CHECKS[name](value)
    except Broken as error:
        raise BadConfig(f"{name}{error.path} {error}") from error
