"""Files that hold a secret key: made by the first process that asks, refused where others could read them."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from neuroweaver.mesh.wire.environment import SettingsError

_MAX_BYTES: Final = 16 * 1024
_OTHERS: Final = stat.S_IRWXO
_GROUP: Final = stat.S_IRWXG


def load_or_create(path: Path, what: str, make: Callable[[], bytes]) -> bytes:
    """The content of a key's file, made with `make` if there is none; of several processes all get the same.

    what: "signing key". Raises SettingsError if the file is not a secret, OSError if it cannot be read or
    made.
    """
    try:
        return _load(path, what)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create(path, make())
        return _load(path, what)


def _load(path: Path, what: str) -> bytes:
    # Not waiting for a writer, if it is a pipe.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        # Of the open file: the path could lead to another one by now.
        _check_secret(path, what, os.fstat(file.fileno()))
        return file.read(_MAX_BYTES)


def _check_secret(path: Path, what: str, status: os.stat_result) -> None:
    """Raises SettingsError that says how to mend it.

    A group may read a file of another owner: so Kubernetes gives a secret to a process that is not root.
    """
    is_own = status.st_uid == os.geteuid()
    if not stat.S_ISREG(status.st_mode):
        raise SettingsError(f"the {what} {path} is not a file")
    if not is_own and status.st_uid != 0:
        raise SettingsError(f"the {what} {path} belongs to another user: run chown {os.geteuid()} on it")
    if status.st_mode & (_OTHERS | (_GROUP if is_own else stat.S_IWGRP)):
        mode = "600" if is_own else "440"
        raise SettingsError(f"the {what} {path} is open to other users: run chmod {mode} on it")


def _create(path: Path, content: bytes) -> None:
    """A new key under `path`, whole and on disk, unless another process was faster."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename, a link never takes the place of a file that is there.
        with suppress(FileExistsError):
            path.hardlink_to(partial)
    finally:
        partial.unlink()
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
