from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from neuroweaver.mesh.wire.environment import SettingsError
from neuroweaver.mesh.wire.errors import DataLoss, InvalidArgument, Unavailable
from neuroweaver.registry.artifacts.blobs import FolderBlobs
from neuroweaver.registry.artifacts.object_store import RemoteBlobs, connect
from neuroweaver.registry.domain.paths import Kind
from registry import stores
from registry.stores import Place, Remote

TEXT = b"0123456789" * 300_000
DIGEST = hashlib.sha256(TEXT).hexdigest()
NAME = f"sha256/{DIGEST[:2]}/{DIGEST}"
OTHER = "0" * 64
NEVER = timedelta(days=-1)
"""Older than a moment that is yet to come: everything is."""


@pytest.fixture(params=["folder", "other disk", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with stores.place(request.param, tmp_path / "artifacts") as place:
        yield place


@pytest.fixture(params=stores.REMOTE)
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    with stores.place(request.param, tmp_path / "artifacts") as place:
        assert isinstance(place, Remote)
        yield place


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return part_of(tmp_path, TEXT)


def part_of(folder: Path, content: bytes) -> Path:
    file = folder / f"{hashlib.sha256(content).hexdigest()}.part"
    file.write_bytes(content)
    return file


def test_what_is_kept_is_read(place: Place, part: Path):
    place.blobs.keep(part, DIGEST)

    assert not part.exists()
    with place.blobs.open(DIGEST) as file:
        assert file.read() == TEXT
    assert place.blobs.size(DIGEST) == len(TEXT)
    assert place.blobs.is_whole(DIGEST)
    assert place.names() == [NAME]


@pytest.mark.parametrize("content", [b"", b"x"])
def test_small_files_are_files_too(place: Place, tmp_path: Path, content: bytes):
    digest = hashlib.sha256(content).hexdigest()
    place.blobs.keep(part_of(tmp_path, content), digest)

    assert place.blobs.size(digest) == len(content)
    assert place.blobs.is_whole(digest)


def test_a_file_is_read_from_anywhere(place: Place, part: Path):
    place.blobs.keep(part, DIGEST)

    with place.blobs.open(DIGEST) as file:
        assert file.seek(0, os.SEEK_END) == len(TEXT)
        assert file.read() == b""
        file.seek(2_999_995)
        assert file.read(3) == b"567"
        file.seek(1, os.SEEK_CUR)
        assert file.read() == b"9"
        file.seek(1_000_001)
        assert file.read(9) == b"123456789"


def test_several_read_one_file_at_once(place: Place, part: Path):
    place.blobs.keep(part, DIGEST)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(place.blobs.is_whole, [DIGEST] * 16))


def test_what_was_never_kept_is_missing(place: Place, part: Path):
    place.blobs.keep(part, DIGEST)

    assert place.blobs.size(OTHER) is None
    assert not place.blobs.is_whole(OTHER)
    assert place.blobs.missing([OTHER, DIGEST, "1" * 64]) == [OTHER, "1" * 64]
    with pytest.raises(FileNotFoundError):
        place.blobs.open(OTHER)


def test_keeping_it_again_repairs_it(place: Place, part: Path, tmp_path: Path):
    place.put(NAME, b"damaged")
    assert not place.blobs.is_whole(DIGEST)

    place.blobs.keep(part, DIGEST)
    place.blobs.keep(part_of(tmp_path, TEXT), DIGEST)

    assert place.blobs.is_whole(DIGEST)
    assert place.names() == [NAME]


def test_a_file_is_deleted_once_or_more(place: Place, part: Path):
    place.blobs.keep(part, DIGEST)

    place.blobs.delete(DIGEST)
    place.blobs.delete(DIGEST)

    assert place.names() == []
    assert place.blobs.missing([DIGEST]) == [DIGEST]


def test_size_and_kind_are_looked_at(place: Place, part: Path):
    assert not place.blobs.is_stored("header", DIGEST, len(TEXT), Kind.TEXT)
    place.blobs.keep(part, DIGEST)

    assert place.blobs.is_stored("header", DIGEST, len(TEXT), Kind.TEXT)
    with pytest.raises(InvalidArgument, match=r"header\.size_bytes: is 7, yet the file has 3000000 bytes"):
        place.blobs.is_stored("header", DIGEST, 7, Kind.TEXT)
    with pytest.raises(InvalidArgument, match=r"header\.path: is not a PNG"):
        place.blobs.is_stored("header", DIGEST, len(TEXT), Kind.PNG)


def test_what_a_crash_left_on_its_way_in_expires(place: Place, part: Path):
    place.blobs.keep(part, DIGEST)
    place.put(f"arriving/{OTHER}.01", b"half")

    assert place.blobs.expire(timedelta(hours=1)) == 0
    assert place.blobs.expire(NEVER) == 1
    assert place.names() == [NAME]
    assert place.blobs.expire(NEVER) == 0


def test_what_is_open_in_a_folder_outlives_its_deletion(part: Path, tmp_path: Path):
    blobs = FolderBlobs(tmp_path / "artifacts")
    blobs.keep(part, DIGEST)

    with blobs.open(DIGEST) as file:
        blobs.delete(DIGEST)
        assert file.read() == TEXT


def test_a_link_is_neither_followed_nor_whole(part: Path, tmp_path: Path):
    blobs = FolderBlobs(tmp_path / "artifacts")
    link = tmp_path / "artifacts" / NAME
    link.parent.mkdir()
    link.symlink_to(part)

    with pytest.raises(DataLoss, match="is a link"):
        blobs.open(DIGEST)
    assert not blobs.is_whole(DIGEST)


def test_a_full_second_disk_keeps_nothing_half(part: Path, tmp_path: Path, monkeypatch):
    def fill(_source, target, _length) -> None:
        target.write(b"half")
        raise OSError(28, "No space left on device")

    with stores.place("other disk", tmp_path / "artifacts") as place:
        monkeypatch.setattr("neuroweaver.registry.artifacts.blobs.shutil.copyfileobj", fill)
        with pytest.raises(OSError, match="No space"):
            place.blobs.keep(part, DIGEST)

        assert place.names() == []
    assert part.exists()


def test_an_object_that_was_sent_in_part_does_not_appear(remote: Remote, part: Path, monkeypatch):
    def send_half(source: str, key: str, **_options) -> None:
        remote.driver.pipe_file(f"{key}.half", Path(source).read_bytes()[:1000])
        raise ConnectionResetError

    monkeypatch.setattr(remote.driver, "put_file", send_half)
    with pytest.raises(Unavailable):
        remote.blobs.keep(part, DIGEST)

    assert part.read_bytes() == TEXT
    assert remote.blobs.size(DIGEST) is None


def test_an_interrupted_multipart_upload_leaves_nothing_on_s3(tmp_path: Path, monkeypatch):
    content = os.urandom(1024) * 40 * 1024
    digest = hashlib.sha256(content).hexdigest()
    with stores.place("s3", tmp_path) as place:
        assert isinstance(place, Remote)
        real = type(place.driver)._call_s3
        begun: list[str] = []

        async def failing(self, method: str, *arguments, **named):
            begun.append(method)
            if method == "upload_part" and named["PartNumber"] == 2:
                raise PermissionError("the credentials have expired")
            return await real(self, method, *arguments, **named)

        monkeypatch.setattr(type(place.driver), "_call_s3", failing)
        with pytest.raises(Unavailable):
            place.blobs.keep(part_of(tmp_path, content), digest)
        monkeypatch.undo()

        assert {"create_multipart_upload", "upload_part", "abort_multipart_upload"} <= set(begun)
        assert place.names() == []
        with stores.s3():
            place.blobs.keep(part_of(tmp_path, content), digest)
            assert place.blobs.is_whole(digest)


def test_an_object_deleted_while_it_is_read_is_missed(remote: Remote, tmp_path: Path):
    content = bytes(20_000_000)
    digest = hashlib.sha256(content).hexdigest()
    remote.blobs.keep(part_of(tmp_path, content), digest)

    with remote.blobs.open(digest) as file:
        file.read(10)
        remote.blobs.delete(digest)
        with pytest.raises(FileNotFoundError):
            file.read()


def test_a_bucket_that_does_not_exist_holds_nothing_and_takes_nothing(part: Path):
    with stores.s3():
        blobs = connect("s3://no-such-bucket/x", Path("/nowhere"))

        assert blobs.size(DIGEST) is None
        with pytest.raises(Unavailable):
            blobs.keep(part, DIGEST)
    assert part.exists()


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda blobs, _: blobs.size(DIGEST), id="size"),
        pytest.param(lambda blobs, _: blobs.open(DIGEST), id="open"),
        pytest.param(lambda blobs, _: blobs.is_whole(DIGEST), id="is_whole"),
        pytest.param(lambda blobs, _: blobs.missing([DIGEST, OTHER]), id="missing"),
        pytest.param(lambda blobs, _: blobs.delete(DIGEST), id="delete"),
        pytest.param(lambda blobs, _: blobs.expire(NEVER), id="expire"),
        pytest.param(lambda blobs, part: blobs.keep(part, DIGEST), id="keep"),
    ],
)
def test_a_store_that_cannot_be_reached_is_unavailable(call, part: Path, caplog, monkeypatch):
    with stores.s3():
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        blobs = connect("s3://models", Path("/nowhere"))
        assert isinstance(blobs, RemoteBlobs)
        blobs._driver.retries = 1  # no patience here

        with caplog.at_level(logging.WARNING), pytest.raises(Unavailable) as told:
            call(blobs, part)

    assert str(told.value) == "the artifact store cannot be reached"
    assert part.exists()
    (logged, *_) = [vars(record) for record in caplog.records if record.name.startswith("neuroweaver")]
    assert logged["cause"] == "EndpointConnectionError"
    assert "hunter2" not in str(logged)


def test_without_a_url_files_lie_in_the_folder(tmp_path: Path, part: Path):
    connect("", tmp_path / "default").keep(part, DIGEST)

    assert (tmp_path / "default" / NAME).is_file()


def test_a_file_url_names_a_folder(tmp_path: Path, part: Path):
    blobs = connect(f"file://{tmp_path}/my%20models", tmp_path / "default")
    assert isinstance(blobs, FolderBlobs)
    blobs.keep(part, DIGEST)

    assert (tmp_path / "my models" / NAME).stat().st_mode & 0o777 == 0o400
    assert not (tmp_path / "default").exists()


@pytest.mark.parametrize("scheme", ["s4", "local", "https-of-mine"])
def test_an_unknown_scheme_is_refused_by_the_variables_name(scheme: str):
    with pytest.raises(SettingsError, match=f"NEUROWEAVER_ARTIFACTS_URL.*{scheme}://"):
        connect(f"{scheme}://bucket", Path("/nowhere"))


def test_a_missing_driver_is_told_with_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)

    with pytest.raises(SettingsError, match=r"NEUROWEAVER_ARTIFACTS_URL.*gs://.*pip install gcsfs"):
        connect("gs://bucket", Path("/nowhere"))
