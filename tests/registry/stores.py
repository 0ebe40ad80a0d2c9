"""The places where complete files may lie, each with a way past the code that is tested."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from neuroweaver.mesh.wire.ids import new_id
from neuroweaver.registry.artifacts.blobs import Blobs, FolderBlobs
from neuroweaver.registry.artifacts.object_store import RemoteBlobs, connect

REMOTE = ("memory", "s3")
KINDS = ("folder", *REMOTE)

# moto takes any.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Place(ABC):
    blobs: Blobs

    @abstractmethod
    def names(self) -> list[str]:
        """Of all complete files and of those on their way in."""

    @abstractmethod
    def put(self, name: str, content: bytes) -> None:
        """Writes there directly, whatever was there."""


class Folder(Place):
    def __init__(self, root: Path) -> None:
        self._root = root
        self.blobs = FolderBlobs(root)

    def names(self) -> list[str]:
        found = (file.relative_to(self._root) for file in self._root.rglob("*") if file.is_file())
        return sorted(str(file) for file in found if file.parts[0] in {"sha256", "arriving"})

    def put(self, name: str, content: bytes) -> None:
        file = self._root / name
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(content)


class Remote(Place):
    def __init__(self, url: str) -> None:
        blobs = connect(url, Path("/nowhere"))
        assert isinstance(blobs, RemoteBlobs)
        self.blobs = blobs
        self.driver: Any = blobs._driver
        self.root = blobs._root

    def names(self) -> list[str]:
        self.driver.invalidate_cache()
        found = (name.lstrip("/") for name in self.driver.find(self.root))
        return sorted(name.removeprefix(f"{self.root}/") for name in found)

    def put(self, name: str, content: bytes) -> None:
        self.driver.pipe_file(f"{self.root}/{name}", content)


@contextmanager
def place(kind: str, root: Path) -> Iterator[Place]:
    """A place of its own. `root` is the store's folder on this machine."""
    with ExitStack() as stack:
        match kind:
            case "folder":
                yield Folder(root)
            case "other disk":
                yield Folder(stack.enter_context(other_disk(root)))
            case "memory":
                yield Remote(f"memory://{new_id()}/models")
            case "s3":
                bucket = f"models-{new_id().lower()}"
                stack.enter_context(s3())
                found = Remote(f"s3://{bucket}/some/prefix")
                found.driver.mkdir(bucket)
                yield found


@contextmanager
def other_disk(root: Path) -> Iterator[Path]:
    """A folder on another file system than `root`."""
    memory = Path("/dev/shm")
    here = next(folder for folder in (root, *root.parents) if folder.exists())
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == here.stat().st_dev:
        pytest.skip("no second file system to write to (/dev/shm): moving between two is not tested")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@contextmanager
def s3() -> Iterator[None]:
    """A real HTTP server that speaks S3's protocol, where this process's S3 clients go by themselves."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", _s3_server())
        yield


_SERVERS: list[str] = []


def _s3_server() -> str:
    """One a process: it takes a second to start."""
    if not _SERVERS:
        reason = "s3fs or moto is not installed: S3 is not tested"
        pytest.importorskip("s3fs", reason=reason)
        moto = pytest.importorskip("moto.server", reason=reason)
        server = moto.ThreadedMotoServer(port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        _SERVERS.append(f"http://{host}:{port}")
    return _SERVERS[0]
