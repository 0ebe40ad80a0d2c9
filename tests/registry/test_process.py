"""The Registry as a process that dies."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest

from neuroweaver.mesh.wire.channel import sync_channel
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
from ports import free_port

CHUNK = 256 * 1024


def content() -> bytes:
    data = os.urandom(64) * 65_536
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


@contextmanager
def serving(environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], RegistryServiceStub]]:
    process = subprocess.Popen([sys.executable, "-m", "neuroweaver.registry"], env=environment)
    try:
        with sync_channel(f"127.0.0.1:{environment['NEUROWEAVER_REGISTRY_PORT']}") as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
            yield process, RegistryServiceStub(channel)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("what", ["corrupt", "newer", "folder", "home"])
def test_a_database_that_cannot_be_used_is_told_in_one_line(what: str, tmp_path: Path):
    """folder: there is one where a file is wanted. home: the file system takes no folder there."""
    home = Path("/proc/neuroweaver") if what == "home" else tmp_path
    file = home / "registry.db"
    if what == "folder":
        file.mkdir()
    elif what == "corrupt":
        file.write_bytes(b"no database at all " * 300)
    elif what == "newer":
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
            connection.execute("INSERT INTO alembic_version VALUES ('9999')")
            connection.commit()
    ended = subprocess.run(
        [sys.executable, "-m", "neuroweaver.registry"],
        env=inherited() | {"NEUROWEAVER_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    words = {
        "corrupt": "neuroweaver registry: the database: file is not a database",
        "newer": "neuroweaver registry: this database was written by another version",
        "folder": "neuroweaver registry: the database: unable to open database file",
        "home": "neuroweaver registry: [Errno",
    }
    assert line.startswith(words[what])


def inherited() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ} | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)
    }


@pytest.fixture
def environment(database_url: str, tmp_path: Path) -> dict[str, str]:
    return inherited() | {
        "NEUROWEAVER_HOME": str(tmp_path),
        "NEUROWEAVER_REGISTRY_PORT": str(free_port()),
        "NEUROWEAVER_REGISTRY_METRICS_PORT": str(free_port()),
        "NEUROWEAVER_DATABASE_URL": "" if database_url.startswith("sqlite") else database_url,
    }


def test_an_upload_survives_a_killed_server(environment: dict[str, str]):
    weights = content()
    digest = hashlib.sha256(weights).hexdigest()
    header = pb.UploadHeader(digest=digest, size_bytes=len(weights), path="m.safetensors")

    def stored() -> int:
        return registry.GetUploadStatus(pb.GetUploadStatusRequest(digest=digest)).committed_bytes

    with serving(environment) as (process, registry):
        registry.RegisterModel(pb.RegisterModelRequest(model=pb.Model(model_id="advisor")))

        def half() -> Iterator[pb.UploadArtifactRequest]:
            yield pb.UploadArtifactRequest(header=header)
            for begin in range(0, len(weights) // 2, CHUNK):
                yield pb.UploadArtifactRequest(chunk=weights[begin : begin + CHUNK])
            give_up = time.monotonic() + 60
            while stored() < CHUNK:
                assert time.monotonic() < give_up
            os.kill(process.pid, signal.SIGKILL)

        with pytest.raises(grpc.RpcError):
            registry.UploadArtifact(half())

    with serving(environment) as (_, registry):
        offset = stored()
        assert CHUNK <= offset <= len(weights) // 2 + CHUNK

        def rest() -> Iterator[pb.UploadArtifactRequest]:
            yield pb.UploadArtifactRequest(
                header=pb.UploadHeader(
                    digest=digest, size_bytes=len(weights), path="m.safetensors", offset_bytes=offset
                )
            )
            for begin in range(offset, len(weights), CHUNK):
                yield pb.UploadArtifactRequest(chunk=weights[begin : begin + CHUNK])

        assert registry.UploadArtifact(rest()).is_complete
        artifact = pb.Artifact(path="m.safetensors", digest=digest, size_bytes=len(weights))
        created = registry.CreateModelVersion(
            pb.CreateModelVersionRequest(model_id="advisor", artifacts=[artifact])
        )
        request = pb.DownloadArtifactRequest(
            model_id="advisor", version=created.version, path="m.safetensors"
        )
        assert b"".join(part.chunk for part in registry.DownloadArtifact(request)) == weights


def test_no_acknowledged_version_is_lost_when_the_server_is_killed(environment: dict[str, str]):
    request = pb.BumpModelVersionRequest(model_id="advisor", level=pb.BUMP_LEVEL_PATCH)
    with serving(environment) as (process, registry):
        registry.RegisterModel(pb.RegisterModelRequest(model=pb.Model(model_id="advisor")))
        acknowledged = [registry.BumpModelVersion(request).version for _ in range(5)]
        process.kill()

    with serving(environment) as (_, registry):
        listed = registry.ListModelVersions(pb.ListModelVersionsRequest(model_id="advisor"))
        assert [version.version for version in listed.versions] == acknowledged[::-1]
        assert registry.VerifyAudit(pb.VerifyAuditRequest()).is_intact


def test_a_disk_that_takes_no_writes_for_a_while_costs_neither_the_process_nor_what_was_stored(
    environment: dict[str, str], database_url: str
):
    if not database_url.startswith("sqlite"):
        pytest.skip("the disk is another machine's")

    def register(model_id: str) -> pb.Model:
        return registry.RegisterModel(pb.RegisterModelRequest(model=pb.Model(model_id=model_id)), timeout=60)

    with serving(environment) as (process, registry):
        register("before")
        before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        with pytest.raises(grpc.RpcError) as refused:
            register("during")
        assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert environment["NEUROWEAVER_HOME"] not in refused.value.details()
        assert registry.GetModel(pb.GetModelRequest(model_id="before")).model_id == "before"

        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)
        assert register("during").model_id == "during"
        assert process.poll() is None
