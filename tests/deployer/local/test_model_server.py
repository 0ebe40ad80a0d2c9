"""The real model server behind the backend, with a tiny model: no fake takes part."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from deployer.local.worlds import FakeRegistry, World, big_machine, children_environment, revision, wanted
from neuroweaver.artifacts.file import File
from neuroweaver.base_models.folders import digests
from neuroweaver.deployer.domain.backend import Bundle
from neuroweaver.deployer.local.backend import LocalSettings, local_backend
from neuroweaver.v1 import deployer_pb2 as pb

models = pytest.importorskip(
    "serving.models", reason="torch is not installed: the model server is not tested"
)

SWITCHED = pb.EngineOptions(adapter_mode=pb.ADAPTER_MODE_SWITCHED, weight_type=pb.WEIGHT_TYPE_FP32)


@dataclass(frozen=True)
class Tiny:
    base: Path
    adapters: tuple[Path, Path]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    base = models.tiny_base(folder / "base")
    return Tiny(base, tuple(models.adapter(base, folder / str(seed), seed=seed) for seed in (1, 2)))


def bundle(registry: FakeRegistry, version: str, folder: Path, base: Path) -> Bundle:
    files = []
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        registry.contents[digest] = content
        files.append(File(path.relative_to(folder).as_posix(), digest, len(content)))
    digest = hashlib.sha256("".join(file.digest for file in files).encode()).hexdigest()
    return Bundle(version, tuple(files), digest, "tiny-base", digests(base).base)


@asynccontextmanager
async def real_world(home: Path, base: Path) -> AsyncIterator[World]:
    registry = FakeRegistry()
    settings = LocalSettings(home=home, port=0, environ=children_environment())

    async def base_folder(name: str, digest: str) -> Path:
        assert (name, digest) == ("tiny-base", digests(base).base)
        return base

    async with (
        httpx2.AsyncClient(trust_env=False) as client,
        local_backend(settings, registry.fetch, base_folder, machine=big_machine()) as backend,
    ):
        yield World(backend, registry, settings, client)


async def said(here: World) -> str:
    messages = [{"role": "user", "content": "hello"}]
    answer = await here.ask(messages=messages, temperature=0, max_tokens=12)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


async def test_an_adapter_is_served_and_swapped_without_a_restart(tmp_path: Path, tiny: Tiny):
    async with real_world(tmp_path, tiny.base) as here:
        one, two = (
            bundle(here.registry, f"{number}.0.0", adapter, tiny.base)
            for number, adapter in enumerate(tiny.adapters, start=1)
        )
        (first,) = (await here.serve(wanted(revision(one), engine=SWITCHED))).replicas
        assert first.loaded_versions == ("1.0.0",)
        assert [phase for phase, _ in first.phases] == [
            pb.REPLICA_PHASE_SCHEDULING,
            pb.REPLICA_PHASE_PULLING,
            pb.REPLICA_PHASE_LOADING,
            pb.REPLICA_PHASE_WARMING,
        ]
        before = await said(here)
        swap = wanted(revision(two, 2), mode=pb.REPLACEMENT_MODE_SWAP_ADAPTER, generation=2, engine=SWITCHED)
        (second,) = (await here.serve(swap)).replicas
        assert (second.replica_id, second.start_time) == (first.replica_id, first.start_time)
        assert await said(here) != before
        await here.until(lambda observed: observed.replicas[0].loaded_versions == ("2.0.0",))


async def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path, tiny: Tiny):
    async with real_world(tmp_path, tiny.base) as here:
        broken = tmp_path / "broken" / "adapter"
        broken.mkdir(parents=True)
        for file in (tiny.adapters[0] / "adapter").iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        (broken / "adapter_model.safetensors").write_bytes(b"no weights at all")
        desired = wanted(revision(bundle(here.registry, "1.0.0", broken.parent, tiny.base)))
        await here.backend.apply(desired)
        observed = await here.until(
            lambda observed: observed.replicas and observed.replicas[0].last_exit is not None
        )
        assert observed.replicas[0].last_exit == 4
        assert "cannot be loaded" in observed.replicas[0].message
