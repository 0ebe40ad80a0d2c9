"""Disks that are really full: a small tmpfs, filled up around running processes."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MIB = 1024 * 1024


class CannotMount(Exception):
    """This user may not mount file systems. The message says what was answered."""


class Disk:
    """A small file system, and a file that takes up what is left of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"
        self._crowd = folder / "crowd"

    def fill(self, *, leave: int = 0) -> None:
        """Until `leave` bytes are free."""
        with self._ballast.open("ab", buffering=0) as ballast:
            for size in (MIB, 4096):
                while self.free() - leave >= size:
                    try:
                        ballast.write(bytes(size))
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                        break

    def empty(self) -> None:
        self._ballast.unlink()

    def use_up_inodes(self) -> None:
        self._crowd.mkdir()
        with suppress(OSError):
            for number in range(os.statvfs(self.folder).f_favail + 1):
                (self._crowd / str(number)).touch()
        assert os.statvfs(self.folder).f_favail == 0

    def free_inodes(self) -> None:
        shutil.rmtree(self._crowd)

    def free(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize


@contextmanager
def mounted(folder: Path, mib: int, *, inodes: int = 0) -> Iterator[Disk]:
    """A tmpfs of that size at `folder`, which is made. inodes: how many at most; 0: as many as there is room for.

    Raises CannotMount.
    """
    folder.mkdir()
    options = f"size={mib}m,mode=0700" + (f",nr_inodes={inodes}" if inodes else "")
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CannotMount((getattr(error, "stderr", None) or str(error)).strip()) from error
    try:
        yield Disk(folder)
    finally:
        # Detached even if something still holds a file on it: no test leaves a mount behind.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
