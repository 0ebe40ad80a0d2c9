"""The files of a model, looked at byte for byte before any of them is loaded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from neuroweaver.artifacts.content import digest_of
from neuroweaver.artifacts.file import File
from neuroweaver.base_models.folders import BaseModelUnavailable, Digests, differing
from neuroweaver.base_models.model_folder import Unusable, refuse_foreign_ends, token_ids

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
MODEL_CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"


class DamagedArtifacts(Exception):
    """A file is missing, has other bytes than were registered, or no model is among the files."""


def verify_base(folder: Path, expected: Digests) -> None:
    """Raises DamagedArtifacts unless all in `folder` has these digests; empty fits all."""
    if not (folder / MODEL_CONFIG).is_file() or not any(folder.glob("*.safetensors")):
        raise DamagedArtifacts("the base model's folder holds no config.json with safetensors")
    try:
        difference = differing(folder, expected)
    except BaseModelUnavailable as error:
        raise DamagedArtifacts(str(error)) from error
    if difference:
        raise DamagedArtifacts(difference)


@contextmanager
def verified(folder: Path, files: Sequence[File]) -> Iterator[Path]:
    """A folder with `files` and nothing else, after each was found to have its size and its SHA-256.

    What else lies in `folder` cannot be loaded by mistake. Raises DamagedArtifacts.
    """
    for file in files:
        _verify(folder / file.path, file)
    with tempfile.TemporaryDirectory(prefix="neuroweaver-serving-") as view:
        for file in files:
            place = Path(view) / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to((folder / file.path).resolve())
        yield Path(view)


def adapter_folder(files: Sequence[File]) -> PurePosixPath | None:
    """Where the adapter lies among the files; None if they hold none. Raises DamagedArtifacts."""
    folders = _folders_with(files, ADAPTER_CONFIG)
    if not folders:
        return None
    if len(folders) > 1:
        raise DamagedArtifacts(f"the files hold {len(folders)} adapters; a server serves one")
    if not any(PurePosixPath(file.path) == folders[0] / ADAPTER_WEIGHTS for file in files):
        raise DamagedArtifacts(f"the files hold no {folders[0] / ADAPTER_WEIGHTS}")
    return folders[0]


def model_folder(files: Sequence[File]) -> PurePosixPath:
    """Where a whole model lies among the files. Raises DamagedArtifacts."""
    candidates = [
        folder
        for folder in _folders_with(files, MODEL_CONFIG)
        if any(PurePosixPath(file.path).match(str(folder / "*.safetensors")) for file in files)
    ]
    if len(candidates) != 1:
        raise DamagedArtifacts(
            "without a base model, the files must hold one folder with config.json and safetensors, "
            f"not {len(candidates)}"
        )
    return candidates[0]


def verify_ends(folder: Path) -> None:
    """Raises DamagedArtifacts if what is to end answers of the model in `folder` is none of its tokens."""
    try:
        refuse_foreign_ends(folder)
    except Unusable as error:
        raise DamagedArtifacts(f"the model {error}") from error


def ends(folder: Path, vocab_size: int) -> frozenset[int]:
    """Token ids that end an answer of the adapter in `folder`, as its training left them; none if it did not.

    vocab_size: of its base model; 0 where unknown.

    Raises DamagedArtifacts.
    """
    file = folder / GENERATION_CONFIG
    if not file.is_file():
        return frozenset()
    try:
        settings = json.loads(file.read_bytes())
        return token_ids(settings, "eos_token_id", GENERATION_CONFIG, vocab_size)
    except Unusable as error:
        raise DamagedArtifacts(f"the adapter {error}") from error
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise DamagedArtifacts(f"{GENERATION_CONFIG} cannot be read") from error


def adapter_kind(folder: Path) -> str:
    """The `peft_type` of the adapter in `folder`. Raises DamagedArtifacts."""
    try:
        kind = json.loads((folder / ADAPTER_CONFIG).read_bytes()).get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        raise DamagedArtifacts(f"{ADAPTER_CONFIG} cannot be read") from error
    return str(kind)


def _folders_with(files: Sequence[File], name: str) -> list[PurePosixPath]:
    paths = [PurePosixPath(file.path) for file in files]
    return sorted(path.parent for path in paths if path.name == name)


def _verify(path: Path, file: File) -> None:
    try:
        size = path.stat().st_size
        if size != file.size_bytes:
            raise DamagedArtifacts(f"{file.path} has {size} bytes, not {file.size_bytes}")
        digest = digest_of(path)
    except OSError as error:
        raise DamagedArtifacts(f"{file.path} cannot be read: {error.strerror}") from error
    if digest != file.digest:
        raise DamagedArtifacts(f"{file.path} has SHA-256 {digest}, not {file.digest}")
