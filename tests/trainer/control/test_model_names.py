from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from e2e.processes import mesh
from neuroweaver.mesh.wire import status
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.trainer.control.model_names import ModelNames
from neuroweaver.v1 import registry_pb2, registry_pb2_grpc
from neuroweaver.v1 import trainer_pb2 as pb
from trainer.serving import trainer
from trainer.tiny import tiny_llama

ROW = '{"question": "Why do brakes squeal?", "answer": "The pads are worn."}\n'


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[registry_pb2_grpc.RegistryServiceAsyncStub]:
    """Of a real Registry that has `advisor`, and had `gone`."""
    with mesh(tmp_path / "registry", "registry") as running:
        async with channel(running.addresses["registry"]) as connection:
            stub: registry_pb2_grpc.RegistryServiceAsyncStub
            stub = registry_pb2_grpc.RegistryServiceStub(connection)
            for name in ("advisor", "gone"):
                model = registry_pb2.Model(model_id=name)
                await stub.RegisterModel(registry_pb2.RegisterModelRequest(model=model))
            await stub.DeleteModel(registry_pb2.DeleteModelRequest(model_id="gone"))
            yield stub


async def test_only_a_deleted_name_is_refused(registry):
    names = ModelNames(registry)
    await names.check("advisor")
    await names.check("new")
    with pytest.raises(InvalidArgument) as refused:
        await names.check("gone")
    ((field, reason),) = refused.value.violations
    assert field == "config.model_name"
    assert 'model "gone" was deleted on ' in reason
    assert "neuroweaver model undelete gone" in reason
    assert reason.endswith("or take another name")


async def test_a_job_under_a_deleted_name_is_neither_started_nor_resumed(registry, tmp_path: Path):
    config = pb.TrainingConfig(
        model_name="gone",
        base_model=str(tiny_llama(tmp_path)),
        specialization="service_advisor",
        dataset_path="good.jsonl",
    )
    home = tmp_path / "trainer"
    home.mkdir()
    async with trainer(home, check_name=ModelNames(registry).check) as served:
        rows = [ROW.replace("brakes", part) for part in ("brakes", "tyres", "belts")]
        (served.data / "good.jsonl").write_text("".join(rows), encoding="utf-8")
        with pytest.raises(grpc.RpcError) as refused:
            await served.stub.StartTraining(pb.StartTrainingRequest(config=config))
        assert [field for field, _ in status.violations(refused.value)] == ["config.model_name"]
        assert not (await served.stub.ListTrainingJobs(pb.ListTrainingJobsRequest())).jobs

        config.model_name = "advisor"
        job = await served.stub.StartTraining(pb.StartTrainingRequest(config=config))
        await served.stub.CancelTraining(pb.CancelTrainingRequest(job_id=job.job_id))
        await registry.DeleteModel(registry_pb2.DeleteModelRequest(model_id="advisor"))
        with pytest.raises(grpc.RpcError) as refused:
            await served.stub.ResumeTraining(pb.ResumeTrainingRequest(job_id=job.job_id))
        assert [field for field, _ in status.violations(refused.value)] == ["config.model_name"]


async def test_while_the_registry_is_away_every_name_will_do(caplog):
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        async with channel(f"127.0.0.1:{taken.getsockname()[1]}") as connection:
            await asyncio.wait_for(
                ModelNames(registry_pb2_grpc.RegistryServiceStub(connection)).check("x"), 30
            )
    assert "name was not checked" in caplog.text
