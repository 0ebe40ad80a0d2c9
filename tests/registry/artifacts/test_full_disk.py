"""The Registry on a disk that is really full: a small tmpfs, filled up around a running process."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from disks import MIB, CannotMount, Disk, mounted
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
from ports import free_port
from registry.test_process import serving

DISK_MIB = 64
DISK_INODES = 128
MANY = 5000
"""Far more calls than the disk has room for."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with ExitStack() as stack:
        try:
            small = stack.enter_context(mounted(tmp_path / "disk", DISK_MIB, inodes=DISK_INODES))
        except CannotMount as error:
            pytest.skip(f"a small disk cannot be mounted here, so a full one is not tested: {error}")
        yield small


@pytest.fixture
def registry(disk: Disk) -> Iterator[RegistryServiceStub]:
    """A process whose home is that disk, with one model."""
    inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment = inherited | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NEUROWEAVER_HOME": str(disk.folder / "home"),
        "NEUROWEAVER_REGISTRY_PORT": str(free_port()),
        "NEUROWEAVER_REGISTRY_METRICS_PORT": str(free_port()),
    }
    with serving(environment) as (_, stub):
        stub.RegisterModel(pb.RegisterModelRequest(model=pb.Model(model_id="advisor")))
        yield stub


def bump(registry: RegistryServiceStub) -> str:
    request = pb.BumpModelVersionRequest(model_id="advisor", level=pb.BUMP_LEVEL_PATCH)
    return registry.BumpModelVersion(request).version


def versions(registry: RegistryServiceStub) -> list[str]:
    """Oldest first."""
    found: list[str] = []
    token = ""
    while True:
        request = pb.ListModelVersionsRequest(model_id="advisor", page_size=1000, page_token=token)
        page = registry.ListModelVersions(request)
        found += [version.version for version in page.versions]
        token = page.next_page_token
        if not token:
            return found[::-1]


def parts(content: bytes, *between: Callable[[], None]) -> Iterator[pb.UploadArtifactRequest]:
    """A text file in pieces of 1 MiB; after each one of `between` is done."""
    header = pb.UploadHeader(
        digest=hashlib.sha256(content).hexdigest(), size_bytes=len(content), path="notes.txt"
    )
    yield pb.UploadArtifactRequest(header=header)
    steps = iter(between)
    for begin in range(0, len(content), MIB):
        yield pb.UploadArtifactRequest(chunk=content[begin : begin + MIB])
        next(steps, lambda: None)()


def refusal(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code()


def stored(disk: Disk) -> list[Path]:
    return [path for path in (disk.folder / "home" / "artifacts").rglob("*") if path.is_file()]


def test_a_file_larger_than_the_room_is_refused(registry: RegistryServiceStub, disk: Disk):
    content = b"x" * (DISK_MIB * MIB)

    assert refusal(lambda: registry.UploadArtifact(parts(content))) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sum(path.stat().st_size for path in stored(disk)) == 0

    assert registry.UploadArtifact(parts(b"small")).is_complete


def test_a_disk_that_fills_up_during_an_upload_gets_its_room_back(registry: RegistryServiceStub, disk: Disk):
    content = b"x" * (8 * MIB)
    after_first = parts(content, lambda: disk.fill(leave=2 * MIB))

    assert refusal(lambda: registry.UploadArtifact(after_first)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    # If the disk was full before the first piece was taken, an empty file is left, as above.
    assert sum(path.stat().st_size for path in stored(disk)) == 0

    disk.empty()
    assert registry.UploadArtifact(parts(content)).is_complete


def test_a_database_that_cannot_grow_refuses_and_recovers(registry: RegistryServiceStub, disk: Disk):
    acknowledged = [bump(registry)]
    disk.fill(leave=256 * 1024)
    codes: set[grpc.StatusCode] = set()
    for _ in range(MANY):
        try:
            acknowledged.append(bump(registry))
        except grpc.RpcError as error:
            codes.add(error.code())
            break
    disk.fill()
    codes |= {refusal(lambda: bump(registry)) for _ in range(20)}
    codes.add(refusal(lambda: registry.RegisterModel(pb.RegisterModelRequest(model=pb.Model(model_id="b")))))
    codes.add(refusal(lambda: registry.UploadArtifact(parts(b"small"))))
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}

    assert versions(registry) == acknowledged
    assert registry.VerifyAudit(pb.VerifyAuditRequest()).is_intact

    disk.empty()
    acknowledged += [bump(registry) for _ in range(5)]
    assert registry.UploadArtifact(parts(b"small")).is_complete
    assert versions(registry) == acknowledged
    audit = registry.VerifyAudit(pb.VerifyAuditRequest())
    assert audit.is_intact
    assert audit.events == len(acknowledged) + 1


def test_a_disk_without_inodes_refuses_and_recovers(registry: RegistryServiceStub, disk: Disk):
    """SQLite cannot make its journal then, and does not say why."""
    acknowledged = [bump(registry)]
    disk.use_up_inodes()

    full = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert refusal(lambda: bump(registry)) in full
    assert refusal(lambda: registry.UploadArtifact(parts(b"small"))) in full
    assert versions(registry) == acknowledged
    assert registry.VerifyAudit(pb.VerifyAuditRequest()).is_intact

    disk.free_inodes()
    acknowledged.append(bump(registry))
    assert registry.UploadArtifact(parts(b"small")).is_complete
    assert versions(registry) == acknowledged
