"""What replicas load is what the Registry has, whatever happens on the way and on this machine's disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deployer.local.replicas.test_processes import FAST, pid_of
from deployer.local.worlds import NAME, READY, FakeRegistry, revision, wanted, world
from disks import CannotMount, mounted
from neuroweaver.artifacts.file import File
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.deployer.domain.backend import Bundle
from neuroweaver.deployer.local.files.cache import Cache
from neuroweaver.v1 import deployer_pb2 as pb


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def cache(tmp_path: Path, registry: FakeRegistry) -> Cache:
    return Cache(tmp_path / "blobs", registry.fetch)


async def test_files_are_laid_out_by_their_paths_and_fetched_once(
    tmp_path: Path, registry: FakeRegistry, cache: Cache
):
    bundle = registry.bundle()
    await asyncio.gather(cache.place(bundle, tmp_path / "a"), cache.place(bundle, tmp_path / "b"))
    for folder in ("a", "b"):
        for file in bundle.files:
            placed = tmp_path / folder / file.path
            assert placed.read_bytes() == registry.contents[file.digest]
            assert placed.stat().st_mode & 0o777 == 0o400
    assert sorted(registry.fetched) == sorted(file.path for file in bundle.files)


async def test_a_corrupt_download_is_refused_and_leaves_nothing(
    tmp_path: Path, registry: FakeRegistry, cache: Cache
):
    bundle = registry.bundle()
    damaged = bundle.files[1]
    content = registry.contents[damaged.digest]
    registry.contents[damaged.digest] = bytes([content[0] ^ 1]) + content[1:]
    with pytest.raises(
        BackendError, match=r"weights/a\.bin: arrived damaged: 2500 bytes with SHA-256"
    ) as raised:
        await cache.place(bundle, tmp_path / "a")
    assert raised.value.trouble is Trouble.ARTIFACTS
    assert [file.name for file in (tmp_path / "blobs").iterdir()] == [bundle.files[0].digest]
    registry.contents[damaged.digest] = content
    await cache.place(bundle, tmp_path / "a")
    assert (tmp_path / "a" / damaged.path).read_bytes() == content


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"x"])
async def test_a_download_of_another_length_is_refused(tmp_path, registry, cache, change):
    bundle = registry.bundle()
    digest = bundle.files[1].digest
    registry.contents[digest] = change(registry.contents[digest])
    with pytest.raises(BackendError, match=r"arrived damaged: .* bytes.*, not 2500 bytes"):
        await cache.place(bundle, tmp_path / "a")


async def test_an_answer_that_breaks_off_is_tried_again_from_the_start(
    tmp_path: Path, registry: FakeRegistry
):
    bundle, fails = registry.bundle(), [True]

    async def fetch(file: File) -> AsyncIterator[bytes]:
        async def broken() -> AsyncIterator[bytes]:
            yield registry.contents[file.digest][:10]
            raise RuntimeError("the stream was reset")

        return broken() if fails else await registry.fetch(file)

    cache = Cache(tmp_path / "blobs", fetch)
    with pytest.raises(BackendError, match=r"cannot fetch behaviour\.json") as raised:
        await cache.place(bundle, tmp_path / "a")
    assert raised.value.trouble is Trouble.UNREACHABLE
    fails.clear()
    await cache.place(bundle, tmp_path / "a")
    assert list((tmp_path / "blobs").glob("*.part")) == []


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "", "a\0b"])
async def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path, cache, path):
    content = b"x"
    file = File(path, hashlib.sha256(content).hexdigest(), 1)
    with pytest.raises(BackendError, match="leads out of the version's folder"):
        await cache.place(Bundle("1.0.0", (file,), "0" * 64), tmp_path / "a")


async def test_only_what_no_deployment_names_is_evicted(tmp_path: Path, registry: FakeRegistry, cache: Cache):
    one, two = registry.bundle("1.0.0"), registry.bundle("2.0.0")
    await cache.place(one, tmp_path / "a")
    await cache.place(two, tmp_path / "b")
    assert await cache.evict(0) == 0
    # behaviour.json is the same in both.
    await cache.place(two, tmp_path / "a")
    assert await cache.evict(3600) == 0
    assert await cache.evict(0) == 1
    left = {file.name for file in (tmp_path / "blobs").iterdir()}
    assert left == {file.digest for file in two.files}


async def test_what_a_killed_process_left_half_way_is_removed(tmp_path: Path, registry: FakeRegistry):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / f"{'a' * 64}.X.part").write_bytes(b"half")
    Cache(tmp_path / "blobs", registry.fetch)
    assert list((tmp_path / "blobs").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(mounted(tmp_path / "disk", 1))
        except CannotMount as error:
            pytest.skip(f"a small disk cannot be mounted here, so a full one is not tested: {error}")
        yield disk.folder


async def test_a_full_disk_is_a_clear_error(small_disk: Path, tmp_path: Path, registry: FakeRegistry):
    content = os.urandom(2 << 20)
    digest = hashlib.sha256(content).hexdigest()
    registry.contents[digest] = content
    cache = Cache(small_disk / "blobs", registry.fetch)
    bundle = Bundle("1.0.0", (File("model.safetensors", digest, len(content)),), "0" * 64)
    with pytest.raises(BackendError, match="no space left for the artifacts") as raised:
        await cache.place(bundle, small_disk / "a")
    assert raised.value.trouble is Trouble.NO_ROOM
    assert list((small_disk / "blobs").iterdir()) == []


async def test_a_disk_that_fills_up_on_the_way_is_the_same_error(small_disk: Path, registry: FakeRegistry):
    content = os.urandom(800_000)
    digest = hashlib.sha256(content).hexdigest()

    async def fetch(file: File) -> AsyncIterator[bytes]:
        (small_disk / "ballast").write_bytes(bytes(500_000))
        registry.contents[digest] = content
        return await registry.fetch(file)

    cache = Cache(small_disk / "blobs", fetch)
    bundle = Bundle("1.0.0", (File("model.safetensors", digest, len(content)),), "0" * 64)
    with pytest.raises(BackendError, match="no space left for the artifacts"):
        await cache.place(bundle, small_disk / "a")
    assert list((small_disk / "blobs").iterdir()) == []


async def test_a_deployment_of_corrupt_artifacts_says_so_and_comes_up_once_they_are_mended(tmp_path: Path):
    async with world(tmp_path) as here:
        bundle = here.registry.bundle()
        digest = bundle.files[1].digest
        content = here.registry.contents.pop(digest)
        here.registry.contents[digest] = b"x" * len(content)
        desired = wanted(revision(bundle))
        await here.backend.apply(desired)
        observed = await here.until(lambda observed: observed.reasons)
        assert observed.reasons[0][0] == "ARTIFACT_CORRUPT"
        assert observed.replicas[0].phase == pb.REPLICA_PHASE_PULLING
        with pytest.raises(BackendError, match=r"weights/a\.bin: arrived damaged: 2500 bytes with SHA-256"):
            await here.backend.apply(desired)
        here.registry.contents[digest] = content
        await here.until(lambda observed: observed.replicas[0].phase == READY)
        await here.backend.apply(desired)
        assert (await here.observe()).reasons == ()


async def test_what_cannot_be_had_replaces_nothing(tmp_path: Path):
    async with world(tmp_path) as here:
        await here.serve(wanted(revision(here.registry.bundle("1.0.0"))))
        fix = here.registry.bundle("2.0.0")
        content = here.registry.contents.pop(fix.files[1].digest)
        here.registry.contents[fix.files[1].digest] = b"x" * len(content)
        desired = wanted(revision(fix, 2), mode=pb.REPLACEMENT_MODE_RECREATE, generation=2)
        await here.backend.apply(desired)
        observed = await here.until(lambda observed: observed.reasons)
        assert observed.weights == {1: 100}
        assert (await here.ask()).json()["version"] == "1.0.0"
        here.registry.contents[fix.files[1].digest] = content
        await here.until(lambda observed: observed.weights == {2: 100})


async def test_artifacts_that_rot_on_disk_are_fetched_again(tmp_path: Path):
    async with world(tmp_path) as here:
        bundle = here.registry.bundle()
        await here.serve(wanted(revision(bundle), recovery=FAST))
        blob = tmp_path / "deployments" / "blobs" / bundle.files[1].digest
        blob.chmod(0o600)
        blob.write_bytes(b"y" * bundle.files[1].size_bytes)
        os.kill(pid_of(tmp_path, 1), 9)
        rotten = await here.until(lambda observed: observed.replicas[0].last_exit == 3)
        assert "missing or corrupt: ERROR weights/a.bin" in rotten.replicas[0].message
        await here.until(lambda observed: observed.replicas[0].phase == READY)
        assert here.registry.fetched.count("weights/a.bin") == 2
        served = tmp_path / "deployments" / NAME / "bundles" / bundle.digest / "weights/a.bin"
        assert served.read_bytes() == here.registry.contents[bundle.files[1].digest]
