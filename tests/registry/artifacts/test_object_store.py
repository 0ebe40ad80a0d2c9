"""A Registry whose files lie in a bucket: real processes on both sides, over HTTP."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from neuroweaver.mesh.wire import status
from neuroweaver.v1 import registry_pb2 as pb
from ports import free_port
from registry import stores
from registry.test_process import CHUNK, content, serving


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return inherited | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "NEUROWEAVER_HOME": str(tmp_path),
        "NEUROWEAVER_REGISTRY_PORT": str(free_port()),
        "NEUROWEAVER_REGISTRY_METRICS_PORT": str(free_port()),
    }


def test_a_registry_keeps_its_files_in_a_bucket(environment: dict[str, str], tmp_path: Path):
    weights = content()
    digest = hashlib.sha256(weights).hexdigest()
    artifact = pb.Artifact(path="m.safetensors", digest=digest, size_bytes=len(weights))

    def parts() -> Iterator[pb.UploadArtifactRequest]:
        yield pb.UploadArtifactRequest(
            header=pb.UploadHeader(digest=digest, size_bytes=len(weights), path="m.safetensors")
        )
        for begin in range(0, len(weights), CHUNK):
            yield pb.UploadArtifactRequest(chunk=weights[begin : begin + CHUNK])

    with stores.place("s3", tmp_path) as bucket:
        assert isinstance(bucket, stores.Remote)
        environment |= stores.CREDENTIALS | {
            "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"],
            "NEUROWEAVER_ARTIFACTS_URL": f"s3://{bucket.root}",
        }
        with serving(environment) as (_, registry):
            registry.RegisterModel(pb.RegisterModelRequest(model=pb.Model(model_id="advisor")))
            assert registry.UploadArtifact(parts()).is_complete
            assert registry.UploadArtifact(parts()).is_deduplicated
            created = registry.CreateModelVersion(
                pb.CreateModelVersionRequest(model_id="advisor", artifacts=[artifact])
            )
            assert bucket.names() == [f"sha256/{digest[:2]}/{digest}"]
            assert not list((tmp_path / "artifacts").rglob(f"*{digest}*"))

            request = pb.DownloadArtifactRequest(
                model_id="advisor", version=created.version, path="m.safetensors"
            )
            assert b"".join(part.chunk for part in registry.DownloadArtifact(request)) == weights

            bucket.put(f"sha256/{digest[:2]}/{digest}", weights[:-1] + b"!")
            with pytest.raises(grpc.RpcError) as lost:
                list(registry.DownloadArtifact(request))
            assert lost.value.code() is grpc.StatusCode.DATA_LOSS
            assert not registry.GetUploadStatus(pb.GetUploadStatusRequest(digest=digest)).is_complete
            assert registry.UploadArtifact(parts()).is_complete
            assert b"".join(part.chunk for part in registry.DownloadArtifact(request)) == weights


def test_a_bucket_that_is_not_there_is_unavailable(environment: dict[str, str]):
    with stores.s3():
        environment |= stores.CREDENTIALS | {
            "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"],
            "NEUROWEAVER_ARTIFACTS_URL": "s3://nowhere-to-be-found",
        }
        with serving(environment) as (_, registry):
            header = pb.UploadHeader(digest=hashlib.sha256(b"x").hexdigest(), size_bytes=1, path="a.txt")
            sent = [pb.UploadArtifactRequest(header=header), pb.UploadArtifactRequest(chunk=b"x")]
            with pytest.raises(grpc.RpcError) as refused:
                registry.UploadArtifact(iter(sent))

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "nowhere" not in status.describe(refused.value)


@pytest.mark.parametrize("url", ["s4://bucket", "s3://me:hunter2@bucket"])
def test_a_url_of_no_use_prevents_the_start_in_one_line(environment: dict[str, str], url: str):
    ended = subprocess.run(
        [sys.executable, "-m", "neuroweaver.registry"],
        env=environment | {"NEUROWEAVER_ARTIFACTS_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "NEUROWEAVER_ARTIFACTS_URL" in line
    assert "hunter2" not in line
