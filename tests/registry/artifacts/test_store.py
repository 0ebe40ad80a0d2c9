from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from neuroweaver.mesh.wire.errors import DataLoss, InvalidArgument, OutOfRange, ResourceExhausted, Unavailable
from neuroweaver.registry.artifacts.store import CHUNK_BYTES, ArtifactStore, Progress
from neuroweaver.registry.domain.model import Artifact
from registry import stores
from registry.stores import Place

TEXT = b"0123456789" * 300_000
DAY = timedelta(days=1)


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def chunks_of(content: bytes, size: int = CHUNK_BYTES) -> list[bytes]:
    return [content[begin : begin + size] for begin in range(0, len(content), size)]


async def upload(
    store: ArtifactStore,
    content: bytes,
    path: str = "a.txt",
    *,
    digest: str = "",
    size: int | None = None,
    offset: int = 0,
) -> Progress:
    length = len(content) + offset if size is None else size
    async with store.upload(digest or digest_of(content), length, path, offset) as begun:
        for chunk in [] if begun.is_deduplicated else chunks_of(content):
            await begun.write(chunk)
        return await begun.finish()


async def download(store: ArtifactStore, digest: str, size: int, offset: int = 0) -> list[bytes]:
    async with store.download(digest, size, offset) as chunks:
        return [chunk async for chunk in chunks]


def name_of(content: bytes) -> str:
    digest = digest_of(content)
    return f"sha256/{digest[:2]}/{digest}"


def part_of(root: Path, content: bytes) -> Path:
    return root / "incoming" / f"{digest_of(content)}.part"


def parts(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "incoming").iterdir())


def age(part: Path, age: timedelta) -> None:
    written = time.time() - age.total_seconds()
    os.utime(part, (written, written))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def interrupt(store: ArtifactStore, content: bytes, size: int) -> None:
    """Leaves a part of the content's first bytes."""
    with pytest.raises(InvalidArgument, match="continue from there"):
        await upload(store, content[:size], digest=digest_of(content), size=len(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture(params=stores.KINDS)
def place(request: pytest.FixtureRequest, root: Path) -> Iterator[Place]:
    with stores.place(request.param, root) as place:
        yield place


@pytest.fixture
def store(root: Path, place: Place) -> ArtifactStore:
    """Once over each kind of place."""
    return ArtifactStore(root, place.blobs)


@pytest.fixture
def folder(root: Path) -> ArtifactStore:
    """The default, for what is the same over all of them."""
    return ArtifactStore(root)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"a" * CHUNK_BYTES, TEXT], ids=["empty", "byte", "chunk", "several"]
)
async def test_what_was_uploaded_is_downloaded(
    store: ArtifactStore, place: Place, root: Path, content: bytes
):
    digest = digest_of(content)

    assert await upload(store, content) == Progress(digest, len(content), is_complete=True)

    assert b"".join(await download(store, digest, len(content))) == content
    assert (place.names(), parts(root)) == ([name_of(content)], [])
    assert await store.progress(digest) == Progress(digest, len(content), is_complete=True)


async def test_the_same_content_is_stored_once_and_sent_once(store: ArtifactStore, place: Place, root: Path):
    await upload(store, TEXT)

    async with store.upload(digest_of(TEXT), len(TEXT), "other/name.md", 0) as again:
        assert again.is_deduplicated
        assert (await again.finish()).is_deduplicated
    assert (place.names(), parts(root)) == ([name_of(TEXT)], [])


async def test_content_stored_as_text_does_not_become_weights_by_name(store: ArtifactStore):
    await upload(store, TEXT, "a.txt")

    with pytest.raises(InvalidArgument, match="not a safetensors file"):
        await upload(store, TEXT, "a.safetensors")
    with pytest.raises(InvalidArgument, match="not a safetensors file"):
        await store.first_missing(
            [Artifact(path="a.safetensors", digest=digest_of(TEXT), size_bytes=len(TEXT))]
        )


async def test_an_interrupted_upload_goes_on_where_it_ended(store: ArtifactStore, place: Place, root: Path):
    digest = digest_of(TEXT)

    async def interrupted() -> None:
        async with store.upload(digest, len(TEXT), "a.txt", 0) as begun:
            await begun.write(TEXT[:1_000_000])
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await interrupted()

    progress = await store.progress(digest)
    assert progress == Progress(digest, 1_000_000, is_complete=False)

    assert (await upload(store, TEXT[1_000_000:], digest=digest, offset=1_000_000)).is_complete
    assert b"".join(await download(store, digest, len(TEXT))) == TEXT
    assert (place.names(), parts(root)) == ([name_of(TEXT)], [])


async def test_an_upload_may_go_on_before_the_end_of_what_is_stored(folder: ArtifactStore):
    digest = digest_of(TEXT)
    with pytest.raises(InvalidArgument, match="only 2000000 of 3000000 bytes came"):
        await upload(folder, TEXT[:2_000_000], digest=digest, size=len(TEXT))

    assert (await upload(folder, TEXT[500_000:], digest=digest, offset=500_000)).is_complete
    assert b"".join(await download(folder, digest, len(TEXT))) == TEXT


async def test_an_upload_that_begins_again_forgets_what_was_stored(folder: ArtifactStore):
    digest = digest_of(b"right")
    with pytest.raises(InvalidArgument, match="only 3 of 5"):
        await upload(folder, b"wro", digest=digest, size=5)

    assert (await upload(folder, b"right")).is_complete


async def test_an_upload_cannot_go_on_beyond_what_is_stored(folder: ArtifactStore, root: Path):
    with pytest.raises(OutOfRange) as refused:
        await upload(folder, b"cd", digest=digest_of(b"abcd"), offset=2)

    assert refused.value.metadata == {"committed_bytes": "0"}
    assert part_of(root, b"abcd").stat().st_size == 0


async def test_a_damaged_part_is_found_out_and_dropped(folder: ArtifactStore, root: Path):
    digest = digest_of(TEXT)
    await interrupt(folder, TEXT, 1000)
    part_of(root, TEXT).write_bytes(b"\0" * 1000)

    with pytest.raises(InvalidArgument, match="not the SHA-256"):
        await upload(folder, TEXT[1000:], digest=digest, offset=1000)
    assert parts(root) == []


@pytest.mark.parametrize(
    ("content", "arguments", "field"),
    [
        pytest.param(b"abc", {"digest": "0" * 64}, "header.digest", id="digest"),
        pytest.param(b"abc", {"size": 2}, "header.size_bytes", id="more than declared"),
        pytest.param(b"abc", {"path": "a.bin"}, "header.path", id="kind"),
        pytest.param(b"\x80\x04rest", {"path": "a.safetensors"}, "chunk", id="pickle"),
        pytest.param(b"PK\x03\x04rest", {"path": "a.json"}, "chunk", id="zip"),
        pytest.param(
            struct.pack("<Q", 2**25) + b"{",
            {"path": "a.safetensors", "size": 2**26},
            "chunk",
            id="header",
        ),
        pytest.param(
            struct.pack("<Q", 4) + b"{}  tail", {"path": "a.safetensors"}, "chunk", id="safetensors"
        ),
        pytest.param(b"abc", {"digest": "../../../../etc/passwd"}, "digest", id="path as digest"),
        pytest.param(b"abc", {"digest": "A" * 64}, "digest", id="upper case"),
    ],
)
async def test_a_refused_upload_leaves_nothing(
    store: ArtifactStore, place: Place, root: Path, content, arguments, field
):
    with pytest.raises(InvalidArgument) as refused:
        await upload(store, content, **arguments)

    assert [name for name, _ in refused.value.violations] == [field]
    assert (place.names(), parts(root)) == ([], [])


async def test_a_declared_size_of_other_content_is_refused(store: ArtifactStore):
    await upload(store, b"abc")

    with pytest.raises(InvalidArgument, match=r"header\.size_bytes: is 4"):
        await upload(store, b"", digest=digest_of(b"abc"), size=4)
    with pytest.raises(InvalidArgument, match=r"artifacts\[0\]\.size_bytes: is 4"):
        await store.first_missing([Artifact(path="a.txt", digest=digest_of(b"abc"), size_bytes=4)])


async def test_a_second_upload_of_the_same_content_waits_for_its_turn(folder: ArtifactStore, root: Path):
    async with folder.upload(digest_of(TEXT), len(TEXT), "a.txt", 0) as first:
        await first.write(TEXT[:10])
        with pytest.raises(Unavailable):
            await upload(ArtifactStore(root), TEXT)
        await first.write(TEXT[10:])
        await first.finish()

    assert (await upload(folder, TEXT)).is_deduplicated


async def test_uploads_of_different_content_run_side_by_side(folder: ArtifactStore):
    contents = [bytes(str(number), "ascii") * 100_000 for number in range(8)]

    done = await asyncio.gather(*(upload(folder, content) for content in contents))

    assert all(progress.is_complete for progress in done)


async def test_a_cancelled_upload_keeps_its_part_and_frees_its_lock(folder: ArtifactStore):
    digest = digest_of(TEXT)
    written = asyncio.Event()

    async def slow() -> None:
        async with folder.upload(digest, len(TEXT), "a.txt", 0) as begun:
            await begun.write(TEXT[:1000])
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(slow())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (await upload(folder, TEXT[1000:], digest=digest, offset=1000)).is_complete


async def test_a_cancelled_write_ends_before_its_file_is_closed(folder: ArtifactStore):
    """Otherwise the thread would go on writing into whatever file gets the number next."""
    open_before = open_files()

    async def one() -> None:
        await upload(folder, os.urandom(8).hex().encode() * 200_000)

    for delay_s in (0, 0.001, 0.005, 0.01):
        task = asyncio.create_task(one())
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.wait({task})

    assert open_files() == open_before


async def test_a_full_disk_is_told_before_the_upload(root: Path):
    store = ArtifactStore(root, reserve_bytes=shutil.disk_usage(root.parent).total)

    with pytest.raises(ResourceExhausted):
        await upload(store, TEXT)


async def test_a_disk_that_fills_up_gets_its_room_back(folder: ArtifactStore, root: Path, monkeypatch):
    real_write = os.write
    left = [1_500_000]

    def write(fd: int, data: bytes) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = real_write(fd, data[: left[0]])
        left[0] -= taken
        return taken

    monkeypatch.setattr("neuroweaver.registry.artifacts.uploads.os.write", write)
    with pytest.raises(ResourceExhausted):
        await upload(folder, TEXT)
    assert parts(root) == []

    monkeypatch.undo()
    assert (await upload(folder, TEXT)).is_complete


async def test_a_download_may_begin_anywhere(store: ArtifactStore):
    await upload(store, TEXT)
    for offset in (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(TEXT) - 1, len(TEXT)):
        assert b"".join(await download(store, digest_of(TEXT), len(TEXT), offset)) == TEXT[offset:]


async def test_a_download_cannot_begin_beyond_the_end(folder: ArtifactStore):
    await upload(folder, b"abc")

    with pytest.raises(OutOfRange, match="byte 3"):
        await download(folder, digest_of(b"abc"), 3, 4)


@pytest.mark.parametrize("offset", [0, 2_999_000])
async def test_a_changed_byte_is_found_out_before_the_last_chunk_is_given(
    store: ArtifactStore, place: Place, offset: int
):
    await upload(store, TEXT)
    place.put(name_of(TEXT), TEXT[:7] + b"!" + TEXT[8:])

    given = bytearray()

    async def read() -> None:
        async with store.download(digest_of(TEXT), len(TEXT), offset) as chunks:
            async for chunk in chunks:
                given.extend(chunk)

    with pytest.raises(DataLoss, match="is corrupt: its content no longer has this digest"):
        await read()
    assert len(given) < len(TEXT) - offset


async def test_a_file_that_was_cut_or_removed_is_lost(store: ArtifactStore, place: Place):
    await upload(store, TEXT)
    place.put(name_of(TEXT), TEXT[:10])
    with pytest.raises(DataLoss, match="has 10 bytes instead of 3000000"):
        await download(store, digest_of(TEXT), len(TEXT))

    place.blobs.delete(digest_of(TEXT))
    with pytest.raises(DataLoss, match="is missing"):
        await download(store, digest_of(TEXT), len(TEXT))


DAMAGES = {"empty": b"", "cut": b"short", "changed": TEXT[:-1] + b"!"}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_an_upload_repairs_a_damaged_file(store: ArtifactStore, place: Place, damage: str):
    await upload(store, TEXT)
    place.put(name_of(TEXT), DAMAGES[damage])

    assert not (await upload(store, TEXT)).is_deduplicated
    assert b"".join(await download(store, digest_of(TEXT), len(TEXT))) == TEXT


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_fault_is_told_apart(store: ArtifactStore, place: Place, damage: str):
    digest, size = digest_of(TEXT), len(TEXT)
    assert await store.fault(digest, size) == "missing"
    await upload(store, TEXT)
    assert await store.fault(digest, size) == ""
    assert await store.fault(digest, size + 1) == "corrupt"
    assert (await store.progress(digest)).is_complete

    place.put(name_of(TEXT), DAMAGES[damage])
    assert await store.fault(digest, size) == "corrupt"


async def test_what_was_found_corrupt_can_be_uploaded_again(store: ArtifactStore, place: Place):
    """A client asks first how much is stored, and sends the rest."""
    digest, size = digest_of(TEXT), len(TEXT)
    await upload(store, TEXT)
    place.put(name_of(TEXT), DAMAGES["changed"])
    assert await store.fault(digest, size) == "corrupt"

    assert await store.progress(digest) == Progress(digest, 0, is_complete=False)
    assert await store.first_missing([Artifact(path="a.txt", digest=digest, size_bytes=size)]) == 0
    assert not (await upload(store, TEXT)).is_deduplicated

    assert await store.progress(digest) == Progress(digest, size, is_complete=True)
    assert await store.first_missing([Artifact(path="a.txt", digest=digest, size_bytes=size)]) is None
    assert await store.fault(digest, size) == ""


async def test_a_download_that_fails_makes_the_file_wanted_again(store: ArtifactStore, place: Place):
    await upload(store, TEXT)
    place.put(name_of(TEXT), DAMAGES["changed"])
    with pytest.raises(DataLoss):
        await download(store, digest_of(TEXT), len(TEXT))

    assert not (await store.progress(digest_of(TEXT))).is_complete


async def test_a_small_file_is_read_whole(store: ArtifactStore, place: Place):
    await upload(store, b"{}", "adapter_config.json")
    digest = digest_of(b"{}")

    assert await store.read_small(digest, 2) == b"{}"
    with pytest.raises(InvalidArgument, match="has more than 1 bytes"):
        await store.read_small(digest, 1)
    with pytest.raises(DataLoss, match="is missing"):
        await store.read_small(digest_of(b"other"), 2)
    place.put(name_of(b"{}"), b"[]")
    with pytest.raises(DataLoss, match="is corrupt: its content no longer has this digest"):
        await store.read_small(digest, 2)


async def test_a_deleted_file_is_missing_and_can_come_back(store: ArtifactStore, place: Place):
    await upload(store, TEXT)
    digest = digest_of(TEXT)
    assert await store.missing([digest, digest_of(b"other")]) == [digest_of(b"other")]

    await store.delete(digest)
    await store.delete(digest)

    assert place.names() == []
    assert await store.missing([digest]) == [digest]
    assert await store.progress(digest) == Progress(digest, 0, is_complete=False)
    assert not (await upload(store, TEXT)).is_deduplicated


async def test_a_running_download_ends_well_though_its_file_is_deleted(folder: ArtifactStore):
    await upload(folder, TEXT)
    given = []

    async with folder.download(digest_of(TEXT), len(TEXT)) as chunks:
        given.append(await anext(aiter(chunks)))
        await folder.delete(digest_of(TEXT))
        given.extend([chunk async for chunk in chunks])

    assert b"".join(given) == TEXT


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda store, digest: store.delete(digest), id="delete"),
        pytest.param(lambda store, digest: store.missing([digest]), id="missing"),
        pytest.param(lambda store, digest: store.fault(digest, 1), id="fault"),
        pytest.param(lambda store, digest: store.read_small(digest, 1), id="read_small"),
        pytest.param(lambda store, digest: store.progress(digest), id="progress"),
        pytest.param(lambda store, digest: download(store, digest, 1), id="download"),
    ],
)
async def test_what_is_no_digest_names_no_file(folder: ArtifactStore, tmp_path: Path, ask):
    (tmp_path / "secret").write_bytes(b"x")

    with pytest.raises(InvalidArgument, match="digest"):
        await ask(folder, "../../secret")
    assert (tmp_path / "secret").exists()


async def test_a_part_that_cannot_be_handed_over_need_not_be_sent_again(
    store: ArtifactStore, place: Place, root: Path, monkeypatch
):
    def unreachable(*_arguments: object) -> None:
        raise Unavailable("the artifact store cannot be reached")

    digest, size = digest_of(TEXT), len(TEXT)
    with monkeypatch.context() as patch:
        patch.setattr(type(place.blobs), "keep", unreachable)
        with pytest.raises(Unavailable):
            await upload(store, TEXT)
    assert await store.progress(digest) == Progress(digest, size, is_complete=False)

    assert (await upload(store, b"", digest=digest, size=size, offset=size)).is_complete
    assert (place.names(), parts(root)) == ([name_of(TEXT)], [])


async def test_old_parts_expire(folder: ArtifactStore, root: Path):
    await interrupt(folder, TEXT, 1000)
    await interrupt(folder, b"younger", 3)
    age(part_of(root, TEXT), 8 * DAY)

    assert await folder.expire_parts(7 * DAY) == 1

    assert parts(root) == [part_of(root, b"younger").name]
    assert (await upload(folder, TEXT)).is_complete


async def test_a_part_that_somebody_writes_never_expires(folder: ArtifactStore, root: Path):
    digest = digest_of(TEXT)
    async with folder.upload(digest, len(TEXT), "a.txt", 0) as begun:
        await begun.write(TEXT)
        age(part_of(root, TEXT), 8 * DAY)
        assert await ArtifactStore(root).expire_parts(7 * DAY) == 0
        assert (await begun.finish()).is_complete

    assert b"".join(await download(folder, digest, len(TEXT))) == TEXT


async def test_a_part_that_was_gone_on_with_does_not_expire(folder: ArtifactStore, root: Path, monkeypatch):
    """It was old when it was found, yet no longer when its lock was had."""
    await interrupt(folder, TEXT, 1000)
    age(part_of(root, TEXT), 8 * DAY)
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        os.utime(part_of(root, TEXT))
        real(fd, operation)

    monkeypatch.setattr("neuroweaver.registry.artifacts.uploads.fcntl.flock", flock)
    assert await folder.expire_parts(7 * DAY) == 0
    assert parts(root) == [part_of(root, TEXT).name]


async def test_uploads_and_their_expiry_do_not_disturb_each_other(folder: ArtifactStore, root: Path):
    """Every part counts as old at once, while many are begun, written and finished."""
    is_over = asyncio.Event()

    async def expire() -> int:
        expired = 0
        while not is_over.is_set():
            expired += await ArtifactStore(root).expire_parts(-DAY)
        return expired

    async def one(number: int) -> None:
        content = f"{number} ".encode() * 50_000
        with contextlib.suppress(InvalidArgument):
            await interrupt(folder, content, 100)
        while True:
            try:
                assert (await upload(folder, content)).is_complete
            except Unavailable:  # the expiry had the lock just then
                continue
            assert b"".join(await download(folder, digest_of(content), len(content))) == content
            return

    expiring = asyncio.create_task(expire())
    await asyncio.gather(*(one(number) for number in range(24)))
    is_over.set()
    await expiring
    assert parts(root) == []


async def test_a_link_in_the_place_of_a_file_is_not_followed(
    folder: ArtifactStore, root: Path, tmp_path: Path
):
    secret = tmp_path / "secret"
    secret.write_bytes(b"abc")
    link = root / name_of(b"abc")
    link.parent.mkdir()
    link.symlink_to(secret)

    with pytest.raises(DataLoss, match="is a link"):
        await download(folder, digest_of(b"abc"), 3)
    assert await folder.fault(digest_of(b"abc"), 3) == "corrupt"
    assert not (await upload(folder, b"abc")).is_deduplicated
    assert await download(folder, digest_of(b"abc"), 3) == [b"abc"]
    assert not link.is_symlink()


async def test_stored_files_are_read_only_and_private(folder: ArtifactStore, root: Path):
    await upload(folder, b"abc")

    assert (root / name_of(b"abc")).stat().st_mode & 0o777 == 0o400
    assert (root / "sha256").stat().st_mode & 0o777 == 0o700


async def test_a_file_that_was_never_uploaded_is_not_there(store: ArtifactStore):
    assert await store.progress("0" * 64) == Progress("0" * 64, 0, is_complete=False)
    assert await store.first_missing([Artifact(path="a.txt", digest="0" * 64, size_bytes=3)]) == 0


async def test_a_safetensors_file_is_taken_in_small_pieces(folder: ArtifactStore):
    header = json.dumps({"a": {"dtype": "U8", "shape": [5], "data_offsets": [0, 5]}}).encode()
    content = struct.pack("<Q", len(header)) + header + b"12345"

    async with folder.upload(digest_of(content), len(content), "m.safetensors", 0) as begun:
        for byte in content:
            await begun.write(bytes([byte]))
        assert (await begun.finish()).is_complete
