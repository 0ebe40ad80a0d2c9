from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from experiment.serving import World, assign, create, spec, start, world
from neuroweaver.client.assignment import LocalAssignment, UnknownExperiment
from neuroweaver.client.connection import Client
from neuroweaver.v1 import experiment_pb2 as pb


@pytest.fixture
async def mesh(tmp_path):
    async with world(f"sqlite:///{tmp_path / 'experiment.db'}", tmp_path) as served:
        yield served


@pytest.fixture
def client(mesh: World) -> Iterator[Client]:
    with Client({"experiment": mesh.address}) as connected:
        yield connected


async def heard(check) -> None:
    for _ in range(200):
        if check():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the change was not heard of")


async def test_units_get_locally_what_the_server_gives_them(mesh: World, client: Client):
    made = spec(coverage=0.7)
    made.variants[1].parameters.update({"temperature": 0.2})
    await create(mesh, "a", made)
    await start(mesh, "a")
    local = LocalAssignment(client)
    await asyncio.to_thread(local.start)
    try:
        for number in range(200):
            served, found = await assign(mesh, f"u{number}", "a"), local.assign("a", f"u{number}")
            assert (served.variant_id, served.is_participant, served.reason, served.phase) == (
                found.variant_id, found.is_participant, found.reason, found.phase,
            )  # fmt: skip
            assert (served.bucket if served.HasField("bucket") else None) == found.bucket
        assert local.variant("a", "tuned").parameters["temperature"] == 0.2
        with pytest.raises(UnknownExperiment):
            local.assign("b", "u")
        with pytest.raises(ValueError, match="NUL"):
            local.assign("a", "u\0")
    finally:
        await asyncio.to_thread(local.close)


async def test_a_change_is_heard_of(mesh: World, client: Client):
    await create(mesh, "a")
    local = LocalAssignment(client)
    await asyncio.to_thread(local.start)
    try:
        assert not local.assign("a", "u").is_participant
        await start(mesh, "a")
        await heard(lambda: local.assign("a", "u").is_participant)
        await create(mesh, "b")
        await heard(lambda: "b" in local._evaluators)
        await mesh.experiment.PauseExperiment(pb.PauseExperimentRequest(test_id="a"))
        await heard(lambda: local.assign("a", "u").reason == pb.ASSIGNMENT_REASON_NOT_RUNNING)
        assert local.age_s < 60
    finally:
        await asyncio.to_thread(local.close)


async def test_a_service_that_is_away_is_told_at_the_start():
    with Client({"experiment": "127.0.0.1:1"}) as nobody:
        local = LocalAssignment(nobody)
        with pytest.raises(TimeoutError, match="is it running"):
            await asyncio.to_thread(local.start, 0.3)
