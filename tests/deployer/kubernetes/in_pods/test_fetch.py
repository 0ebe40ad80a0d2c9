from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from neuroweaver.base_models.folders import digests
from neuroweaver.v1 import registry_pb2, registry_pb2_grpc

FILES = {"adapter_config.json": b"{}", "sub/adapter_model.safetensors": os.urandom(300_000)}


class FakeRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """A fake: gives bytes, and breaks off where it is told to."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.break_after = 0
        self.offsets: list[int] = []

    async def DownloadArtifact(self, request, context):  # noqa: N802
        content = self.files.get(request.path)
        if content is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no {request.path}")
        self.offsets.append(request.offset_bytes)
        yield registry_pb2.DownloadArtifactResponse(artifact=registry_pb2.Artifact(path=request.path))
        rest = content[request.offset_bytes :]
        for start in range(0, len(rest), 65_536):
            yield registry_pb2.DownloadArtifactResponse(chunk=rest[start : start + 65_536])
            if self.break_after and request.path.endswith("safetensors"):
                self.break_after = 0
                await context.abort(grpc.StatusCode.UNAVAILABLE, "a break")


@pytest.fixture
async def registry() -> AsyncIterator[tuple[FakeRegistry, str]]:
    server, made = grpc.aio.server(), FakeRegistry()
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(made, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield made, f"127.0.0.1:{port}"
    await server.stop(None)


async def run(
    folder: Path, address: str, base: dict[str, str] | None = None, **changes
) -> subprocess.CompletedProcess[str]:
    """As the init container runs it."""
    files = [
        {"path": path, "digest": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for path, content in FILES.items()
    ]
    config = {
        "model": "support-bot",
        "version": "1.0.0",
        "files_folder": str(folder / "files"),
        "files": files,
    } | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "source.json").write_text(
        json.dumps({"registry": address, "model_id": "support-bot"} | (base or {}))
    )
    command = [sys.executable, "-m", "neuroweaver.deployer.kubernetes.in_pods.fetch"]
    command += ["--config", str(folder / "config.json"), "--source", str(folder / "source.json")]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    out, err = await process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out.decode(), err.decode())


async def test_files_are_fetched_and_verified(registry, tmp_path: Path):
    done = await run(tmp_path, registry[1])
    assert (done.returncode, done.stderr) == (0, "")
    assert {name: (tmp_path / "files" / name).read_bytes() for name in FILES} == FILES
    asked = len(registry[0].offsets)
    assert (await run(tmp_path, registry[1])).returncode == 0
    assert len(registry[0].offsets) == asked  # what is there and right is not fetched again


async def test_a_download_that_breaks_off_goes_on_where_it_was(registry, tmp_path: Path):
    registry[0].break_after = 1
    done = await run(tmp_path, registry[1])
    assert done.returncode == 0, done.stderr
    assert registry[0].offsets[-1] == 65_536
    assert (tmp_path / "files/sub/adapter_model.safetensors").read_bytes() == FILES[
        "sub/adapter_model.safetensors"
    ]


async def test_a_corrupt_file_ends_it_with_the_reason_and_leaves_none(registry, tmp_path: Path):
    registry[0].files["adapter_config.json"] = b"[]"
    done = await run(tmp_path, registry[1])
    assert done.returncode == 3
    assert "adapter_config.json: arrived damaged: 2 bytes with SHA-256" in done.stderr
    assert not list((tmp_path / "files").rglob("*.*"))


async def test_a_missing_file_ends_it_with_the_reason(registry, tmp_path: Path):
    del registry[0].files["adapter_config.json"]
    done = await run(tmp_path, registry[1])
    assert done.returncode == 3
    assert done.stderr.strip() == "adapter_config.json: NOT_FOUND: no adapter_config.json"


async def test_a_base_model_of_another_digest_ends_it_before_anything_is_fetched(registry, tmp_path: Path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    base = {"base_folder": str(folder), "base_digest": digests(folder).base}
    done = await run(tmp_path, registry[1], base)
    assert (done.returncode, done.stderr) == (0, "")
    (folder / "model.safetensors").write_bytes(b"Weights")
    asked = len(registry[0].offsets)
    done = await run(tmp_path, registry[1], base)
    assert done.returncode == 3
    assert "the base model has digest" in done.stderr
    done = await run(tmp_path, registry[1], base | {"base_folder": str(tmp_path / "none")})
    assert done.returncode == 3
    assert "cannot be read" in done.stderr
    assert len(registry[0].offsets) == asked


async def test_a_tokenizer_or_chat_template_of_another_digest_ends_it(registry, tmp_path: Path):
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    found = digests(folder)
    base = {"base_folder": str(folder), "base_digest": found.base}
    pinned = {"tokenizer_digest": found.tokenizer, "chat_template_digest": found.chat_template}
    assert (await run(tmp_path, registry[1], base, **pinned)).returncode == 0
    (folder / "tokenizer.json").write_text("[]")
    (folder / "chat_template.jinja").write_text("{{ messages | upper }}")
    for changed, part in (({}, "the tokenizer"), ({"tokenizer_digest": ""}, "the chat template")):
        done = await run(tmp_path, registry[1], base, **(pinned | changed))
        assert done.returncode == 3
        assert f"{part} has digest" in done.stderr


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", ""])
async def test_a_path_out_of_the_folder_is_refused(registry, tmp_path: Path, path: str):
    done = await run(tmp_path, registry[1], files=[{"path": path, "digest": "a" * 64, "size_bytes": 1}])
    assert done.returncode == 2
    assert not registry[0].offsets
