"""The base model as a local folder of safetensors, converted or downloaded if need be, and its digests.

Imports no torch, but where the shipped model is converted for the first time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import huggingface_hub

from neuroweaver.artifacts.content import digest_of, sha256_of
from neuroweaver.base_models import hub_models
from neuroweaver.base_models.model_folder import PICKLES, Unusable, refuse_foreign_ends
from neuroweaver.mesh.machine.files import whole_folder

if TYPE_CHECKING:  # the catalogue asks hubs, which a model server does not
    from neuroweaver.base_models.catalog import BaseModel

BUILTIN_FOLDER = "smollm2-135m-instruct"
# Weights as safetensors, never pickles or code; sub-folders hold other formats of the same weights.
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "merges.txt", "vocab.txt")
OTHER_FORMATS = "consolidated*"
HUB_IGNORED = ("*/*", OTHER_FORMATS, "*.py", "*.pkl", *(f"*{ending}" for ending in PICKLES))
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
LOCK_POLL_S = 0.2

Check = Callable[[], None]
"""Called now and then while something takes long; what it raises ends that."""


class BaseModelUnavailable(Exception):
    """The base model cannot be had here: package, folder or hub lacks it, or it has no safetensors."""


class HubUnreachable(BaseModelUnavailable):
    """The hub did not answer, or not with all of it: another try may succeed."""


@dataclass(frozen=True)
class Digests:
    """SHA-256, as hex, of what an adapter depends on.

    generation: of generation_config.json, which says among other things what ends an answer. It and
    chat_template are None where the model has none.
    """

    base: str
    tokenizer: str
    chat_template: str | None
    generation: str | None = None


def never_stop() -> None:
    """The `Check` of a caller who waits to the end."""


def materialize(base: BaseModel, home: Path, check: Check = never_stop) -> Path:
    """The folder of `base` with config, safetensors and tokenizer; blocks, for minutes if there is none yet.

    Raises BaseModelUnavailable.
    """
    if base.kind == "builtin":
        return _builtin(Path(base.location), home / "models", check)
    if base.kind == "local":
        return _checked(Path(base.location), base.name)
    if base.kind == "hub":
        folder = _checked(_download(base, home / "models" / "hub"), base.name)
        try:
            refuse_foreign_ends(folder)  # of the hub's own word for a model, it is no part
        except Unusable as error:
            raise BaseModelUnavailable(f"base model {base.name!r} {error}") from error
        return folder
    raise BaseModelUnavailable(f"base model {base.name!r} is of unknown kind {base.kind!r}")


def tokenizer_folder(base: BaseModel, home: Path) -> Path | None:
    """The folder with the tokenizer of `base`, fetched from the hub without its weights if need be.

    None while the shipped model has not been converted yet. Raises BaseModelUnavailable.
    """
    if base.kind == "builtin":
        folder = home / "models" / BUILTIN_FOLDER
        return folder if folder.is_dir() else None
    if base.kind == "local":
        return Path(base.location)
    return _download(base, home / "models" / "hub", ignored=("*.safetensors",))


def digests(folder: Path) -> Digests:
    """Digests of the weights and architecture, of the tokenizer, and of the chat template in `folder`.

    Raises BaseModelUnavailable where the template cannot be read.
    """
    generation = folder / "generation_config.json"
    return Digests(
        base=_base(folder),
        tokenizer=_tokenizer(folder),
        chat_template=_template(folder),
        generation=digest_of(generation) if generation.is_file() else None,
    )


def differing(folder: Path, expected: Digests) -> str:
    """What in `folder` has another digest than expected, in a sentence; empty if nothing has. Empty digests
    fit all.

    Raises BaseModelUnavailable where the template cannot be read.
    """
    parts = (
        ("the base model", _base, expected.base),
        ("the tokenizer", _tokenizer, expected.tokenizer),
        ("the chat template", _template, expected.chat_template),
    )
    for part, digest_in, digest in parts:
        if digest and (actual := digest_in(folder)) != digest:
            return f"{part} has digest {actual}, not {digest}"
    return ""


def base_digest(config: str, weights: Mapping[str, str]) -> str:
    """`Digests.base` by the SHA-256 of config.json and of each *.safetensors file, as a hub tells them."""
    return _digest_of([("config.json", config), *sorted(weights.items())])


def _base(folder: Path) -> str:
    weights = sorted(folder.glob("*.safetensors"))
    return base_digest(digest_of(folder / "config.json"), {file.name: digest_of(file) for file in weights})


def _tokenizer(folder: Path) -> str:
    return _digest_of_files([folder / name for name in TOKENIZER_FILES if (folder / name).is_file()])


def _template(folder: Path) -> str | None:
    template = _chat_template(folder)
    return None if template is None else sha256_of([template])


def _builtin(source: Path, models: Path, check: Check) -> Path:
    folder = models / BUILTIN_FOLDER
    if folder.is_dir():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with _lock(models / f".{BUILTIN_FOLDER}.lock", check):
        if folder.is_dir():  # another process converted it while this one waited
            return folder
        with whole_folder(folder) as partial:
            _convert_gguf(source, partial, check)
    return folder


def _convert_gguf(source: Path, folder: Path, check: Check) -> None:
    try:
        from neuroweaver.base_models import gguf  # noqa: PLC0415 (torch, needed once in a home's life)
    except ImportError as error:
        raise BaseModelUnavailable(
            f"the built-in base model must be converted once, for which {error.name} is missing "
            "(pip install 'neuroweaver[train]')"
        ) from error
    gguf.convert(source, folder, check)


def _download(base: BaseModel, cache: Path, ignored: tuple[str, ...] = ()) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(base.location),
                revision=base.revision,
                cache_dir=cache,
                allow_patterns=list(HUB_FILES),
                ignore_patterns=[*HUB_IGNORED, *ignored],
            )
        )
    except (OSError, ValueError, httpx2.HTTPError) as error:
        kind = HubUnreachable if hub_models.may_pass(error) else BaseModelUnavailable
        raise kind(f"base model {base.name!r} could not be fetched from the hub") from error


def _checked(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise BaseModelUnavailable(f"base model {name!r} holds no config.json")
    if not any(folder.glob("*.safetensors")):
        raise BaseModelUnavailable(f"base model {name!r} holds no safetensors weights")
    return folder


def _chat_template(folder: Path) -> bytes | None:
    """Raises BaseModelUnavailable."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        if file.is_file():
            return file.read_text(encoding="utf-8").encode()
        template = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
        if isinstance(template, list):  # several by name
            template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
        return template.encode() if isinstance(template, str) else None
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise BaseModelUnavailable(f"the chat template of {folder.name} cannot be read") from error


def _digest_of_files(files: list[Path]) -> str:
    return _digest_of((file.name, digest_of(file)) for file in files)


def _digest_of(files: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over the files' names and their own SHA-256."""
    return sha256_of(f"{digest}  {name}\n".encode() for name, digest in files)


@contextlib.contextmanager
def _lock(file: Path, check: Check) -> Iterator[None]:
    """Hold `file` exclusively among processes; a holder that dies lets go of it."""
    with file.open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check()
                time.sleep(LOCK_POLL_S)
        yield
