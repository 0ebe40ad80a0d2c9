"""Where training data lies: a file of the data folder or a built-in set; nothing else is ever opened."""

from __future__ import annotations

import difflib
import stat
from pathlib import Path

BUILTIN = "builtin:"
FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv"}


class DatasetError(Exception):
    """The data cannot be trained on: `field` is the request's field at fault, `reason` says why."""

    def __init__(self, reason: str, *, field: str = "dataset_path") -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


class DatasetNotFoundError(DatasetError):
    """There is no such file."""


class DatasetRefusedError(DatasetError):
    """The path names something outside of the data folder, or no data file."""


class DatasetUnreadableError(DatasetError):
    """The operating system refuses to read the file."""


def builtins() -> dict[str, Path]:
    """The built-in training sets by name, such as `automotive`."""
    files = sorted(Path(__file__).parent.glob("*/train.jsonl"))
    return {file.parent.name: file for file in files}


def locate(dataset_path: str, data_folder: Path) -> Path:
    """The file that `dataset_path` names: `builtin:NAME`, or a path inside of `data_folder`.

    Links are followed. Raises DatasetRefusedError for what lies outside of the folder, is no regular file or
    has an unknown ending; DatasetNotFoundError if there is nothing.
    """
    if dataset_path.startswith(BUILTIN):
        return _builtin(dataset_path.removeprefix(BUILTIN))
    if not dataset_path.strip():
        raise DatasetRefusedError(
            "is empty; name a .jsonl or .csv file in the data folder, or builtin:automotive"
        )
    if "\0" in dataset_path:
        raise DatasetRefusedError("holds a NUL character")
    if ".." in Path(dataset_path).parts:
        raise DatasetRefusedError(
            f"{dataset_path[:200]}: '..' is not allowed; name a file inside of the data folder"
        )
    root = data_folder.resolve()
    candidate = data_folder / dataset_path
    # Before the file system is asked: whoever names a path outside learns nothing of what is there.
    if not (candidate.is_relative_to(data_folder) or candidate.is_relative_to(root)):
        raise DatasetRefusedError(f"{dataset_path[:200]}: lies outside of the data folder")
    file, mode = _resolved(candidate, dataset_path, data_folder)
    if not file.is_relative_to(root):
        raise DatasetRefusedError(f"{dataset_path}: lies outside of the data folder")
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise DatasetRefusedError(f"{dataset_path}: is {kind}; name a .jsonl or .csv file")
    format_of(file)
    return file


def format_of(path: Path) -> str:
    """`jsonl` or `csv`, by the file's ending. Raises DatasetRefusedError for any other."""
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise DatasetRefusedError(f"{path.name}: unknown ending; use one of {', '.join(FORMATS)}") from None


def _resolved(candidate: Path, dataset_path: str, data_folder: Path) -> tuple[Path, int]:
    try:
        file = candidate.resolve(strict=True)
        return file, file.stat().st_mode
    except FileNotFoundError:
        raise DatasetNotFoundError(_missing(dataset_path, data_folder)) from None
    # pathlib raises RuntimeError for a loop of links, ValueError for what cannot be encoded.
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "cannot be followed"
        raise DatasetRefusedError(f"{dataset_path[:200]!r}: {reason}") from error


def _builtin(name: str) -> Path:
    sets = builtins()
    if name not in sets:
        names = ", ".join(f"{BUILTIN}{other}" for other in sets) or "no other"
        raise DatasetNotFoundError(f"{BUILTIN}{name[:100]}: no such built-in data set; use {names}")
    return sets[name]


def _missing(dataset_path: str, data_folder: Path) -> str:
    names = sorted(path.name for path in data_folder.glob("*") if path.suffix.lower() in FORMATS)
    close = difflib.get_close_matches(dataset_path, names, n=1)
    if close:
        hint = f"; did you mean {close[0]}?"
    else:
        hint = f", which holds {', '.join(names[:5])}" if names else ", which holds no data sets"
    return f"{dataset_path[:200]}: no such file in the data folder{hint}"
