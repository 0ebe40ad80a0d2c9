from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise

import grpc
import pytest

from clients.fakes import CONTENT, FakeRegistry, serving
from e2e.processes import Mesh, mesh
from neuroweaver.artifacts.content import TransferError, files_of
from neuroweaver.artifacts.transfer import artifact_of, download, upload
from neuroweaver.client import Client
from neuroweaver.v1 import registry_pb2 as pb

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Mesh]:
    """A real Registry."""
    with mesh(tmp_path_factory.mktemp("home"), "registry") as running:
        yield running


@pytest.fixture
def client(home) -> Iterator[Client]:
    with Client({"registry": home.addresses["registry"]}) as client:
        yield client


def weights(size: int) -> bytes:
    """Safetensors that no other test has."""
    data = os.urandom(size)
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def written(folder, files):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def created(client, files) -> pb.ModelVersion:
    client.registry.RegisterModel(
        pb.RegisterModelRequest(model=pb.Model(model_id="advisor"), allow_existing=True)
    )
    return client.registry.CreateModelVersion(
        pb.CreateModelVersionRequest(model_id="advisor", artifacts=map(artifact_of, files))
    )


def committed(client, content: bytes) -> int:
    status = client.registry.GetUploadStatus(pb.GetUploadStatusRequest(digest=digest_of(content)))
    return status.committed_bytes


class Wire:
    """A TCP relay to `address` that breaks its connection after so many bytes in one direction, once for each entry."""

    def __init__(self, address: str, *, upstream=(), downstream=()) -> None:
        host, port = address.split(":")
        self._target = (host, int(port))
        self._limits = {"up": list(upstream), "down": list(downstream)}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.breaks = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            for direction, source, sink in (("up", near, far), ("down", far, near)):
                threading.Thread(target=self._relay, args=(direction, source, sink), daemon=True).start()

    def _relay(self, direction: str, source: socket.socket, sink: socket.socket) -> None:
        passed = 0
        try:
            while data := source.recv(64 * 1024):
                sink.sendall(data)
                passed += len(data)
                if self._limits[direction] and passed > self._limits[direction][0]:
                    self._limits[direction].pop(0)
                    self.breaks += 1
                    break
        except OSError:
            pass  # the other direction has ended the connection
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def through(wire: Wire) -> Iterator[Client]:
    with Client({"registry": wire.address}) as client:
        try:
            yield client
        finally:
            wire.close()


def test_a_folder_goes_up_and_comes_down_again(client, tmp_path):
    files = {"adapter/model.safetensors": weights(3 * MIB), "README.md": b"# Advisor\n", "empty.txt": b""}
    seen = []

    artifacts = upload(
        client.registry, written(tmp_path / "up", files), on_progress=lambda *told: seen.append(told)
    )
    found = download(client.registry, created(client, artifacts), tmp_path / "down")

    assert [each.path for each in artifacts] == sorted(files)
    assert {each.path: (each.digest, each.size_bytes) for each in artifacts} == {
        path: (digest_of(content), len(content)) for path, content in files.items()
    }
    assert {str(file.relative_to(tmp_path / "down")): file.read_bytes() for file in found} == files
    assert not list(tmp_path.rglob("*.part"))
    size = len(files["adapter/model.safetensors"])
    done = [now for path, now, total in seen if (path, total) == ("adapter/model.safetensors", size)]
    assert done == [MIB, 2 * MIB, 3 * MIB, size, size]
    assert seen[-1] == ("empty.txt", 0, 0)


def test_what_is_stored_already_is_not_sent_again(client, tmp_path):
    content = weights(2 * MIB)
    upload(client.registry, {"a.safetensors": written(tmp_path, {"a": content}) / "a"})
    seen = []

    [again] = upload(
        client.registry, {"b.safetensors": tmp_path / "a"}, on_progress=lambda *told: seen.append(told)
    )

    assert again.digest == digest_of(content)
    assert seen == [("b.safetensors", len(content), len(content))]


def test_one_file_goes_by_its_name(client, tmp_path):
    [artifact] = upload(client.registry, written(tmp_path, {"notes.md": b"# Notes"}) / "notes.md")

    assert artifact.path == "notes.md"


def test_hidden_files_are_left_out_and_told(tmp_path):
    folder = written(tmp_path, {"a.txt": b"a", ".git/config": b"x", "b/.DS_Store": b"x", "b/c.txt": b"c"})
    skipped = []

    found = files_of(folder, skipped.append)

    assert sorted(found) == ["a.txt", "b/c.txt"]
    assert sorted(skipped) == [".git/", "b/.DS_Store"]


@pytest.mark.parametrize("target", ["a.txt", "elsewhere", "nowhere"])
def test_a_link_in_the_folder_is_refused(client, tmp_path, target):
    folder = written(tmp_path, {"up/a.txt": b"a", "elsewhere/b.txt": b"b"}) / "up"
    (folder / "link").symlink_to(tmp_path / target if target != "a.txt" else target)

    with pytest.raises(TransferError, match="link: is a symbolic link"):
        upload(client.registry, folder)


def test_a_linked_file_named_by_itself_is_refused(client, tmp_path):
    written(tmp_path, {"a.txt": b"a"})
    (tmp_path / "link.txt").symlink_to("a.txt")

    with pytest.raises(TransferError, match="is a symbolic link"):
        upload(client.registry, {"link.txt": tmp_path / "link.txt"})


def test_a_hard_link_is_a_file_like_any_other(client, tmp_path):
    folder = written(tmp_path, {"a.txt": b"hard"})
    (folder / "b.txt").hardlink_to(folder / "a.txt")

    assert [each.path for each in upload(client.registry, folder)] == ["a.txt", "b.txt"]


def test_a_pipe_in_the_folder_is_refused(client, tmp_path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(TransferError, match="pipe: is not a regular file"):
        upload(client.registry, tmp_path)
    with pytest.raises(TransferError, match="pipe: is not a regular file"):
        upload(client.registry, {"pipe.txt": tmp_path / "pipe"})


def test_an_empty_folder_is_refused(client, tmp_path):
    with pytest.raises(TransferError, match="has no files"):
        upload(client.registry, tmp_path)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("../a.txt", "outside the version's folder"),
        ("/a.txt", "outside the version's folder"),
        ("a/../../b.txt", "outside the version's folder"),
        ("a\\b.txt", "backslash"),
        ("two words.txt", "is not a path for a version's file"),
        ("é.txt", "is not a path for a version's file"),
        ("-rf.txt", "is not a path for a version's file"),
        ("a//b.txt", "is not a path for a version's file"),
        ("a/" * 300 + "b.txt", "is not a path for a version's file"),
        ("a.txt\n", "is not a path for a version's file"),
    ],
)
def test_a_path_that_no_version_takes_is_refused_before_anything_is_sent(client, tmp_path, path, problem):
    content = os.urandom(8).hex().encode()
    file = written(tmp_path, {"f": content}) / "f"

    with pytest.raises(TransferError, match=problem) as refused:
        upload(client.registry, {"a.txt": file, path: file})

    assert refused.value.entry == path
    assert "\n" not in str(refused.value)
    assert committed(client, content) == 0


def test_what_the_registry_refuses_is_told_with_the_files_name(client, tmp_path):
    folder = written(tmp_path, {"model.safetensors": pickle.dumps({"a": 1}, protocol=4)})

    with pytest.raises(TransferError, match=r"model\.safetensors: is refused: .*a pickle"):
        upload(client.registry, folder)


def test_a_file_that_shrinks_while_it_is_sent_is_told(client, tmp_path):
    file = written(tmp_path, {"a.safetensors": weights(4 * MIB)}) / "a.safetensors"

    def shrink(_path, done, _total):
        if done:
            os.truncate(file, done)

    with pytest.raises(TransferError, match="became shorter"):
        upload(client.registry, file, on_progress=shrink)


def test_an_interrupted_upload_goes_on_where_it_stopped(home, client, tmp_path):
    content = weights(12 * MIB)
    file = written(tmp_path, {"a.safetensors": content}) / "a.safetensors"
    wire = Wire(home.addresses["registry"], upstream=[4 * MIB, 3 * MIB])
    done = []

    def on_progress(_path, now, _total):
        done.append(now)
        give_up = time.monotonic() + 60
        # Before the first break: a server that is interrupted drops what it has received and not yet written.
        while len(done) == 2 and committed(client, content) < MIB:
            assert time.monotonic() < give_up

    with through(wire) as interrupted:
        [artifact] = upload(interrupted.registry, file, on_progress=on_progress)

    assert wire.breaks == 2
    assert all(after > min(before, MIB) for before, after in pairwise(done))
    assert artifact.digest == digest_of(content)
    assert committed(client, content) == len(content)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["drained", "killed"])
def test_a_registry_that_is_started_again_is_waited_for(tmp_path, number):
    content = weights(12 * MIB)
    file = written(tmp_path, {"a.safetensors": content}) / "a.safetensors"
    restarted = []

    with mesh(tmp_path / "home", "registry") as running:

        def restart(_path, done, _total):
            if done >= 6 * MIB and not restarted:
                restarted.append(done)
                running.stop("registry", number)
                running.start("registry")

        with Client({"registry": running.addresses["registry"]}) as client:
            upload(client.registry, file, on_progress=restart)
            assert committed(client, content) == len(content)

    assert restarted


def test_what_an_earlier_program_sent_is_not_sent_again(client, tmp_path):
    content = weights(5 * MIB)
    file = written(tmp_path, {"a.safetensors": content}) / "a.safetensors"

    def killed(_path, done, _total):
        if done >= 3 * MIB:
            raise KeyError("the program ends here")

    with pytest.raises(KeyError):
        upload(client.registry, file, on_progress=killed)
    stored = committed(client, content)
    done = []
    upload(client.registry, file, on_progress=lambda _path, now, _total: done.append(now))

    assert 3 * MIB <= stored < len(content)
    assert done[0] > stored
    assert committed(client, content) == len(content)


def test_a_stored_beginning_of_something_else_does_not_stand_in_the_way(client, tmp_path):
    content = weights(2 * MIB)
    header = pb.UploadHeader(digest=digest_of(content), size_bytes=len(content), path="a.safetensors")
    other = weights(2 * MIB)[:MIB]

    with pytest.raises(grpc.RpcError):
        client.registry.UploadArtifact(
            iter([pb.UploadArtifactRequest(header=header), pb.UploadArtifactRequest(chunk=other)])
        )
    assert committed(client, content) == MIB

    upload(client.registry, written(tmp_path, {"a.safetensors": content}))

    assert committed(client, content) == len(content)


def test_a_registry_that_never_answered_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("neuroweaver.artifacts.transfer.time.sleep", pytest.fail)

    with Client({"registry": "127.0.0.1:1"}) as client, pytest.raises(grpc.RpcError) as error:
        upload(client.registry, written(tmp_path, {"a.txt": b"a"}))

    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_registry_that_stays_away_ends_the_patience(home, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("neuroweaver.artifacts.transfer.time.sleep", waits.append)
    # Nothing gets through after the greeting: every attempt breaks.
    wire = Wire(home.addresses["registry"], upstream=[2 * MIB] + [0] * 1000)

    with through(wire) as client, pytest.raises(grpc.RpcError) as error:
        upload(client.registry, written(tmp_path, {"a.safetensors": weights(8 * MIB)}))

    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert 5 <= len(waits) <= 10
    assert max(waits) <= 5


def test_an_interrupted_download_goes_on_where_it_stopped(home, client, tmp_path):
    content = weights(12 * MIB)
    version = created(client, upload(client.registry, written(tmp_path / "up", {"a.safetensors": content})))
    wire = Wire(home.addresses["registry"], downstream=[4 * MIB, 3 * MIB])
    done = []

    with through(wire) as interrupted:
        [file] = download(
            interrupted.registry,
            version,
            tmp_path / "down",
            on_progress=lambda _path, now, _total: done.append(now),
        )

    assert wire.breaks == 2
    assert file.read_bytes() == content
    assert done == sorted(set(done))


def test_a_download_goes_on_from_the_part_that_is_there(client, tmp_path):
    content = weights(3 * MIB)
    version = created(client, upload(client.registry, written(tmp_path / "up", {"x/a.safetensors": content})))
    written(tmp_path / "down", {"x/a.safetensors.part": content[: 2 * MIB]})
    done = []

    [file] = download(
        client.registry, version, tmp_path / "down", on_progress=lambda _path, now, _total: done.append(now)
    )

    assert file.read_bytes() == content
    assert done[0] > 2 * MIB
    assert [each.name for each in file.parent.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("kept", [1, MIB, 5 * MIB])
def test_a_part_of_another_file_does_not_stand_in_the_way(client, tmp_path, kept):
    content = weights(2 * MIB)
    version = created(client, upload(client.registry, written(tmp_path / "up", {"a.safetensors": content})))
    written(tmp_path / "down", {"a.safetensors.part": b"\xff" * kept})

    [file] = download(client.registry, version, tmp_path / "down")

    assert file.read_bytes() == content


def test_a_file_that_is_there_is_not_fetched_again_unless_it_is_another(client, tmp_path):
    content = weights(MIB)
    version = created(client, upload(client.registry, written(tmp_path / "up", {"a.safetensors": content})))
    [file] = download(client.registry, version, tmp_path / "down")
    before = file.stat().st_ino

    download(client.registry, version, tmp_path / "down")
    assert file.stat().st_ino == before

    file.write_bytes(b"\0" * len(content))
    download(client.registry, version, tmp_path / "down")
    assert file.read_bytes() == content


@pytest.mark.parametrize("link", ["x", "x/a.safetensors", "x/a.safetensors.part"])
def test_nothing_is_written_through_a_link(client, tmp_path, link):
    version = created(
        client, upload(client.registry, written(tmp_path / "up", {"x/a.safetensors": weights(MIB)}))
    )
    written(tmp_path / "elsewhere", {"kept": b"as it was"})
    (tmp_path / "down" / link).parent.mkdir(parents=True)
    (tmp_path / "down" / link).symlink_to(tmp_path / "elsewhere" / ("" if link == "x" else "kept"))

    with pytest.raises(TransferError, match="is a symbolic link"):
        download(client.registry, version, tmp_path / "down")

    assert [each.name for each in (tmp_path / "elsewhere").iterdir()] == ["kept"]
    assert (tmp_path / "elsewhere" / "kept").read_bytes() == b"as it was"


@pytest.mark.parametrize("path", ["../escaped", "/tmp/escaped", "a/../../escaped", "a\\..\\escaped"])
def test_a_server_that_names_a_file_elsewhere_is_not_followed(tmp_path, path):
    fake = FakeRegistry(path=path)

    with serving(fake) as address, Client({"registry": address}) as client:
        version = fake.GetModelVersion(pb.GetModelVersionRequest(model_id="service-advisor"), None)
        with pytest.raises(TransferError, match=r"outside the version's folder|backslash"):
            download(client.registry, version, tmp_path / "down")

    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize("forged", [b"short", b"x" * 7000, b"x" * 8000])
def test_a_file_that_arrives_damaged_is_not_kept(tmp_path, forged):
    fake = FakeRegistry(content={**CONTENT, "adapter/adapter_model.safetensors": forged})

    with serving(fake) as address, Client({"registry": address}) as client:
        version = fake.GetModelVersion(pb.GetModelVersionRequest(model_id="service-advisor"), None)
        with pytest.raises(TransferError, match=r"adapter_model\.safetensors: arrived damaged"):
            download(client.registry, version, tmp_path)

    assert [each.name for each in (tmp_path / "adapter").iterdir()] == ["adapter_config.json"]
