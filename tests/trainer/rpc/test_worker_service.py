from __future__ import annotations

import grpc
import pytest
from sqlalchemy import select, update

from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.status import reason
from neuroweaver.trainer.storage.tables import JOBS
from neuroweaver.v1 import trainer_pb2 as pb
from neuroweaver.v1 import worker_pb2, worker_pb2_grpc
from trainer.serving import PlayedWorker, Trainer


@pytest.fixture
async def worker(served: Trainer, config: pb.TrainingConfig) -> PlayedWorker:
    """Of a job that runs."""
    await served.stub.StartTraining(pb.StartTrainingRequest(job_id="job", config=config))
    return await served.executor.worker()


def success(number: int = 1) -> worker_pb2.ReportRequest:
    finished = pb.JobFinished(state=pb.JOB_STATE_SUCCEEDED)
    event = pb.TrainingEvent(finished=finished)
    return worker_pb2.ReportRequest(job_id="job", lease_token=1, number=number, event=event)


def progress(number: int) -> worker_pb2.ReportRequest:
    event = pb.TrainingEvent(progress=pb.Progress(step=number))
    return worker_pb2.ReportRequest(job_id="job", lease_token=1, number=number, event=event)


async def reported(stub, request, metadata=()) -> worker_pb2.ReportResponse:
    call = stub.Report(metadata=metadata)
    await call.write(request)
    answer = await call.read()
    if answer is grpc.aio.EOF:
        await call  # raises what the server said
    call.cancel()
    return answer


async def running(served: Trainer) -> bool:
    job = await served.stub.GetTrainingJob(pb.GetTrainingJobRequest(job_id="job"))
    return job.state == pb.JOB_STATE_RUNNING


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer 1"),), (("authorization", "Bearer"),)])
async def test_nobody_ends_a_job_without_the_secret_of_its_attempt(served, worker, metadata):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reported(served.worker_stub, success(), metadata)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert await running(served)


async def test_the_secret_opens_nothing_at_the_port_that_everybody_reaches(served, worker):
    async with channel(served.address) as connection:
        stub = worker_pb2_grpc.WorkerServiceStub(connection)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reported(stub, success(), worker.metadata)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert await running(served)


async def test_a_secret_is_kept_as_its_digest_alone(served, worker):
    async with served.store.database.read() as connection:
        row = (await connection.execute(select(JOBS))).one()
    assert len(row.secret_digest) == 64
    assert worker.secret not in repr(row)


async def test_every_attempt_has_another_secret(served, worker):
    worker.end(1)
    await served.state("job", pb.JOB_STATE_FAILED)
    await served.stub.ResumeTraining(pb.ResumeTrainingRequest(job_id="job"))
    second = await served.executor.worker(2)
    request = success()
    request.lease_token = 2
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reported(served.worker_stub, request, worker.metadata)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await reported(served.worker_stub, request, second.metadata)
    await served.state("job", pb.JOB_STATE_SUCCEEDED)


async def test_a_report_before_which_one_is_missing_is_refused(served, worker):
    await reported(served.worker_stub, progress(1), worker.metadata)
    for request in (progress(3), success(3)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reported(served.worker_stub, request, worker.metadata)
        assert reason(caught.value) == "REPORT_MISSING"
    assert await running(served)
    assert (await reported(served.worker_stub, progress(2), worker.metadata)).acknowledged == 2


async def test_a_worker_that_was_started_before_there_were_secrets_goes_on(served, worker):
    async def forget(connection):
        await connection.execute(update(JOBS).values(secret_digest=""))

    await served.store.database.transact(forget)
    async with channel(served.address) as connection:
        await reported(worker_pb2_grpc.WorkerServiceStub(connection), success())
    await served.state("job", pb.JOB_STATE_SUCCEEDED)
