"""What a model server is told: one JSON file."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

WeightType = Literal["", "bf16", "fp16", "fp32"]
AdapterMode = Literal["merged", "switched"]

WEIGHT_TYPES: Final = ("", "bf16", "fp16", "fp32")
ADAPTER_MODES: Final = ("merged", "switched")

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class BadConfig(Exception):
    """The configuration cannot be used; the text names the field."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of a version, by its path under the folder of files. digest: SHA-256 in hexadecimal."""

    path: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Config:
    """name, version: what requests call the model: `name` or `name@version`.

    base_folder: of the model that an adapter among `files` fits on; None where the files are a whole model.
    base_digest: that of `BasePin.model_digest`; empty: not checked. weight_type: empty is as stored.
    max_context_tokens: of prompt and answer together; 0 is the model's own.
    stall_s: how long the engine may make no progress on its work before it counts as dead.
    probe_interval_s: how often an idle engine proves itself by a token of its own.
    drain_s: how long requests may still run after SIGTERM.
    memory_limit_bytes: beyond which whoever started it ends it; 0: there is no such limit.
    """

    name: str
    version: str
    files_folder: Path
    files: tuple[ModelFile, ...] = ()
    base_folder: Path | None = None
    base_digest: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    weight_type: WeightType = ""
    adapter_mode: AdapterMode = "merged"
    max_context_tokens: int = 0
    max_batch_size: int = 16
    max_queue_size: int = 256
    revision: str = ""
    stall_s: float = 30.0
    probe_interval_s: float = 10.0
    drain_s: float = 300.0
    memory_limit_bytes: int = 0


_KEYS: Final = {each.name for each in dataclasses.fields(Config)} - {"name"} | {"model"}


def read(path: Path) -> Config:
    """The configuration in the JSON file `path`. Raises BadConfig."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadConfig(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise BadConfig(f"{path} holds no JSON object")
    return parse(content)


def parse(content: dict[str, Any]) -> Config:
    """Raises BadConfig."""
    if unknown := sorted(set(content) - _KEYS):
        raise BadConfig(f"{unknown[0]} is no field of the configuration")
    given = _Given(content)
    name, _, pinned = given.text("model").partition("@")
    version = given.text("version", pinned)
    if not name:
        raise BadConfig("model is empty")
    if pinned and version != pinned:
        raise BadConfig(f"version is {version!r}, but model says {pinned!r}")
    base, folder = given.text("base_folder", ""), given.text("files_folder", "")
    if not base and not folder:
        raise BadConfig("files_folder is empty, and there is no base_folder")
    return Config(
        name=name,
        version=version,
        files_folder=Path(folder),
        files=files_of(content.get("files", [])),
        base_folder=Path(base) if base else None,
        base_digest=_digest(given.text("base_digest", ""), "base_digest", may_be_empty=True),
        host=given.text("host", "127.0.0.1"),
        port=int(given.number("port", 0, low=0, high=65535)),
        weight_type=given.choice("weight_type", WEIGHT_TYPES, prefix="weight_type_"),
        adapter_mode=given.choice("adapter_mode", ADAPTER_MODES, prefix="adapter_mode_", default="merged"),
        max_context_tokens=int(given.number("max_context_tokens", 0, low=0, high=1 << 24)),
        max_batch_size=int(given.number("max_batch_size", 16, low=1, high=4096)),
        max_queue_size=int(given.number("max_queue_size", 256, low=0, high=100_000)),
        revision=str(content.get("revision", "")),
        stall_s=given.number("stall_s", 30.0, low=0.1, high=3600, whole=False),
        probe_interval_s=given.number("probe_interval_s", 10.0, low=0.1, high=3600, whole=False),
        drain_s=given.number("drain_s", 300.0, low=0, high=86_400, whole=False),
        memory_limit_bytes=int(given.number("memory_limit_bytes", 0, low=0, high=1 << 50)),
    )


def files_of(value: Any) -> tuple[ModelFile, ...]:
    """Raises BadConfig."""
    if not isinstance(value, list):
        raise BadConfig("files is no list")
    found = tuple(_file(each, f"files[{at}]") for at, each in enumerate(value))
    if len({file.path for file in found}) < len(found):
        raise BadConfig("files names a path twice")
    return found


def _file(value: Any, where: str) -> ModelFile:
    if not isinstance(value, dict):
        raise BadConfig(f"{where} is no object")
    given = _Given(value, f"{where}.")
    path = PurePosixPath(given.text("path"))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise BadConfig(f"{where}.path must lie under files_folder, not at {str(path)!r}")
    return ModelFile(
        path=str(path),
        digest=_digest(given.text("digest"), f"{where}.digest"),
        size_bytes=int(given.number("size_bytes", None, low=0, high=1 << 50)),
    )


def _digest(value: str, where: str, *, may_be_empty: bool = False) -> str:
    if _DIGEST.fullmatch(value) or (may_be_empty and not value):
        return value
    raise BadConfig(f"{where} is no SHA-256 in hexadecimal")


@dataclass(frozen=True)
class _Given:
    """Fields of a JSON object, each of the type that is asked for."""

    content: dict[str, Any]
    prefix: str = field(default="")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.content.get(key, default)
        if not isinstance(value, str) or "\0" in value:
            raise BadConfig(f"{self.prefix}{key} must be a text")
        return value

    def number(
        self, key: str, default: float | None, *, low: float, high: float, whole: bool = True
    ) -> float:
        value = self.content.get(key, default)
        kinds = (int,) if whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise BadConfig(f"{self.prefix}{key} must be {kind} from {low:g} to {high:g}")
        return value

    def choice(self, key: str, choices: tuple[str, ...], *, prefix: str, default: str = "") -> Any:
        """One of `choices`, also as the contract's enum writes it."""
        value = self.text(key, default).lower().removeprefix(prefix)
        value = default if value in {"", "unspecified"} else value
        if value not in choices:
            raise BadConfig(f"{self.prefix}{key} must be one of {', '.join(filter(None, choices))}")
        return value
