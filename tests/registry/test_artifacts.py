from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from neuroweaver.mesh.errors import DataLoss, InvalidArgument, OutOfRange, ResourceExhausted, Unavailable
from neuroweaver.registry.artifacts import CHUNK_BYTES, ArtifactStore, Progress

TEXT = b"0123456789" * 300_000


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


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def stored_file(root: Path, digest: str) -> Path:
    return root / "sha256" / digest[:2] / digest


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def store(root: Path) -> ArtifactStore:
    return ArtifactStore(root)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"a" * CHUNK_BYTES, TEXT], ids=["empty", "byte", "chunk", "several"]
)
async def test_what_was_uploaded_is_downloaded(store: ArtifactStore, root: Path, content: bytes):
    digest = digest_of(content)

    assert await upload(store, content) == Progress(digest, len(content), is_complete=True)

    assert b"".join(await download(store, digest, len(content))) == content
    assert files(root) == [f"sha256/{digest[:2]}/{digest}"]
    assert await store.progress(digest) == Progress(digest, len(content), is_complete=True)


async def test_the_same_content_is_stored_once_and_sent_once(store: ArtifactStore, root: Path):
    await upload(store, TEXT)
    before = stored_file(root, digest_of(TEXT)).stat()

    async with store.upload(digest_of(TEXT), len(TEXT), "other/name.md", 0) as again:
        assert again.is_deduplicated
        assert (await again.finish()).is_deduplicated
    assert stored_file(root, digest_of(TEXT)).stat().st_mtime_ns == before.st_mtime_ns
    assert len(files(root)) == 1


async def test_content_stored_as_text_does_not_become_weights_by_name(store: ArtifactStore):
    await upload(store, TEXT, "a.txt")

    with pytest.raises(InvalidArgument, match="not a safetensors file"):
        await upload(store, TEXT, "a.safetensors")
    with pytest.raises(InvalidArgument, match="not a safetensors file"):
        await store.check("artifacts[0]", digest_of(TEXT), len(TEXT), "a.safetensors")


async def test_an_interrupted_upload_goes_on_where_it_ended(store: ArtifactStore, root: Path):
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
    assert len(files(root)) == 1


async def test_an_upload_may_go_on_before_the_end_of_what_is_stored(store: ArtifactStore):
    digest = digest_of(TEXT)
    with pytest.raises(InvalidArgument, match="only 2000000 of 3000000 bytes came"):
        await upload(store, TEXT[:2_000_000], digest=digest, size=len(TEXT))

    assert (await upload(store, TEXT[500_000:], digest=digest, offset=500_000)).is_complete
    assert b"".join(await download(store, digest, len(TEXT))) == TEXT


async def test_an_upload_that_begins_again_forgets_what_was_stored(store: ArtifactStore):
    digest = digest_of(b"right")
    with pytest.raises(InvalidArgument, match="only 3 of 5"):
        await upload(store, b"wro", digest=digest, size=5)

    assert (await upload(store, b"right")).is_complete


async def test_an_upload_cannot_go_on_beyond_what_is_stored(store: ArtifactStore, root: Path):
    with pytest.raises(OutOfRange) as refused:
        await upload(store, b"cd", digest=digest_of(b"abcd"), offset=2)

    assert refused.value.metadata == {"committed_bytes": "0"}
    assert files(root) in ([], [f"incoming/{digest_of(b'abcd')}.part"])


async def test_a_damaged_part_is_found_out_and_dropped(store: ArtifactStore, root: Path):
    digest = digest_of(TEXT)
    with pytest.raises(InvalidArgument):
        await upload(store, TEXT[:1000], digest=digest, size=len(TEXT))
    part = root / "incoming" / f"{digest}.part"
    part.write_bytes(b"\0" * 1000)

    with pytest.raises(InvalidArgument, match="not the SHA-256"):
        await upload(store, TEXT[1000:], digest=digest, offset=1000)
    assert files(root) == []


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
async def test_a_refused_upload_leaves_nothing(store: ArtifactStore, root: Path, content, arguments, field):
    with pytest.raises(InvalidArgument) as refused:
        await upload(store, content, **arguments)

    assert [name for name, _ in refused.value.violations] == [field]
    assert files(root) == []


async def test_a_declared_size_of_other_content_is_refused(store: ArtifactStore):
    await upload(store, b"abc")

    with pytest.raises(InvalidArgument, match=r"header\.size_bytes: is 4"):
        await upload(store, b"", digest=digest_of(b"abc"), size=4)
    with pytest.raises(InvalidArgument, match=r"artifacts\[3\]\.size_bytes: is 4"):
        await store.check("artifacts[3]", digest_of(b"abc"), 4, "a.txt")


async def test_a_second_upload_of_the_same_content_waits_for_its_turn(store: ArtifactStore, root: Path):
    async with store.upload(digest_of(TEXT), len(TEXT), "a.txt", 0) as first:
        await first.write(TEXT[:10])
        with pytest.raises(Unavailable):
            await upload(ArtifactStore(root), TEXT)
        await first.write(TEXT[10:])
        await first.finish()

    assert (await upload(store, TEXT)).is_deduplicated


async def test_uploads_of_different_content_run_side_by_side(store: ArtifactStore):
    contents = [bytes(str(number), "ascii") * 100_000 for number in range(8)]

    done = await asyncio.gather(*(upload(store, content) for content in contents))

    assert all(progress.is_complete for progress in done)


async def test_a_cancelled_upload_keeps_its_part_and_frees_its_lock(store: ArtifactStore):
    digest = digest_of(TEXT)
    written = asyncio.Event()

    async def slow() -> None:
        async with store.upload(digest, len(TEXT), "a.txt", 0) as begun:
            await begun.write(TEXT[:1000])
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(slow())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (await upload(store, TEXT[1000:], digest=digest, offset=1000)).is_complete


async def test_a_cancelled_write_ends_before_its_file_is_closed(store: ArtifactStore):
    """Otherwise the thread would go on writing into whatever file gets the number next."""
    open_before = open_files()

    async def one() -> None:
        await upload(store, os.urandom(8).hex().encode() * 200_000)

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


async def test_a_disk_that_fills_up_gets_its_room_back(store: ArtifactStore, root: Path, monkeypatch):
    real_write = os.write
    left = [1_500_000]

    def write(fd: int, data: bytes) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = real_write(fd, data[: left[0]])
        left[0] -= taken
        return taken

    monkeypatch.setattr("neuroweaver.registry.artifacts.os.write", write)
    with pytest.raises(ResourceExhausted):
        await upload(store, TEXT)
    assert files(root) == []

    monkeypatch.undo()
    assert (await upload(store, TEXT)).is_complete


async def test_a_download_may_begin_anywhere(store: ArtifactStore):
    await upload(store, TEXT)
    for offset in (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(TEXT) - 1, len(TEXT)):
        assert b"".join(await download(store, digest_of(TEXT), len(TEXT), offset)) == TEXT[offset:]


async def test_a_download_cannot_begin_beyond_the_end(store: ArtifactStore):
    await upload(store, b"abc")

    with pytest.raises(OutOfRange, match="byte 3"):
        await download(store, digest_of(b"abc"), 3, 4)


@pytest.mark.parametrize("offset", [0, 2_999_000])
async def test_a_changed_byte_is_found_out_before_the_last_chunk_is_given(
    store: ArtifactStore, root: Path, offset: int
):
    await upload(store, TEXT)
    file = stored_file(root, digest_of(TEXT))
    file.chmod(0o600)
    with file.open("r+b") as opened:
        opened.seek(7)
        opened.write(b"!")

    given = bytearray()

    async def read() -> None:
        async with store.download(digest_of(TEXT), len(TEXT), offset) as chunks:
            async for chunk in chunks:
                given.extend(chunk)

    with pytest.raises(DataLoss, match="no longer has its digest"):
        await read()
    assert len(given) < len(TEXT) - offset


async def test_a_file_that_was_cut_or_removed_is_lost(store: ArtifactStore, root: Path):
    await upload(store, TEXT)
    file = stored_file(root, digest_of(TEXT))
    file.chmod(0o600)
    os.truncate(file, 10)
    with pytest.raises(DataLoss, match="has 10 bytes instead of 3000000"):
        await download(store, digest_of(TEXT), len(TEXT))

    file.unlink()
    with pytest.raises(DataLoss, match="is missing"):
        await download(store, digest_of(TEXT), len(TEXT))


@pytest.mark.parametrize("damage", [b"", b"short", TEXT[:-1] + b"!"], ids=["empty", "cut", "changed"])
async def test_an_upload_repairs_a_damaged_file(store: ArtifactStore, root: Path, damage: bytes):
    await upload(store, TEXT)
    file = stored_file(root, digest_of(TEXT))
    file.chmod(0o600)
    file.write_bytes(damage)

    assert not (await upload(store, TEXT)).is_deduplicated
    assert b"".join(await download(store, digest_of(TEXT), len(TEXT))) == TEXT


async def test_a_link_in_the_place_of_a_file_is_not_followed(
    store: ArtifactStore, root: Path, tmp_path: Path
):
    secret = tmp_path / "secret"
    secret.write_bytes(b"abc")
    link = stored_file(root, digest_of(b"abc"))
    link.parent.mkdir()
    link.symlink_to(secret)

    with pytest.raises(DataLoss, match="is a link"):
        await download(store, digest_of(b"abc"), 3)


async def test_stored_files_are_read_only_and_private(store: ArtifactStore, root: Path):
    await upload(store, b"abc")

    assert stored_file(root, digest_of(b"abc")).stat().st_mode & 0o777 == 0o400
    assert (root / "sha256").stat().st_mode & 0o777 == 0o700


async def test_a_file_that_was_never_uploaded_is_not_there(store: ArtifactStore):
    assert await store.progress("0" * 64) == Progress("0" * 64, 0, is_complete=False)
    assert not await store.check("artifacts[0]", "0" * 64, 3, "a.txt")


async def test_a_safetensors_file_is_taken_in_small_pieces(store: ArtifactStore):
    header = json.dumps({"a": {"dtype": "U8", "shape": [5], "data_offsets": [0, 5]}}).encode()
    content = struct.pack("<Q", len(header)) + header + b"12345"

    async with store.upload(digest_of(content), len(content), "m.safetensors", 0) as begun:
        for byte in content:
            await begun.write(bytes([byte]))
        assert (await begun.finish()).is_complete
