"""Folders and files that appear whole or not at all, also after a power cut."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

# Of 108 bytes on Linux, and 104 elsewhere.
_LONGEST_ADDRESS: Final = 100
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; on leaving without an error it is synced to disk and becomes `target`.

    An existing `target` is replaced. On an error nothing of it remains and `target` is untouched; what a
    killed process left behind is removed by the next call for the same target. One process at a time.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.partial-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield partial
        _open_to_readers(partial)
        sync_folder(partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A path of the same file, short enough for the address of a Unix socket, for the length of the block.

    Raises OSError where there is none: only Linux has another one.
    """
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{folder}/{path.name}"
        if not Path(short).parent.exists():
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
        yield short
    finally:
        os.close(folder)


def write_whole(target: Path, content: str | bytes) -> None:
    """Write `content` to `target` so that a reader sees the old file or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    _sync(partial)
    partial.rename(target)
    _sync(target.parent)


def write_json(target: Path, content: Mapping[str, Any]) -> None:
    write_whole(target, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False))


def write_jsonl(target: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_whole(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote; None if it never finished."""
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    parsed: dict[str, Any] = json.loads(content)
    return parsed


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def keep_private(folder: Path) -> list[Path]:
    """Takes a folder and two levels of what lies in it from all but their owner, who alone gets deeper then.

    Links in it are not followed. Returns what could not be changed, as it is another user's or on a disk that
    cannot, and a folder that is everybody's, such as /tmp.
    """
    folder = folder.resolve()
    if folder.is_dir() and folder.stat().st_mode & stat.S_ISVTX:
        return [folder]
    entries = _entries(folder)
    refused = []
    for path in (folder, *entries, *(deeper for entry in entries for deeper in _entries(entry))):
        try:
            mode = path.lstat().st_mode
            if mode & _OTHERS and not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
        except FileNotFoundError:  # another service's, and gone meanwhile
            continue
        except OSError:
            refused.append(path)
    return refused


def _entries(folder: Path) -> list[Path]:
    try:
        return [] if folder.is_symlink() else list(folder.iterdir())
    except OSError:  # a file, gone, or closed to us
        return []


def sync_folder(folder: Path) -> None:
    """Make the folder's files and sub-folders durable."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _open_to_readers(folder: Path) -> None:
    """Undo the owner-only modes of mkdtemp and safetensors, as any other file of the home would have."""
    mask = os.umask(0)
    os.umask(mask)
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
