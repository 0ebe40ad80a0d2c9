from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from prometheus_client import REGISTRY
from sqlalchemy.exc import OperationalError

import postgres
from neuroweaver.mesh.handlers import loop
from neuroweaver.mesh.handlers.heartbeats import Heartbeats
from neuroweaver.mesh.wire.status import reason, violations
from neuroweaver.trainer.control.supervisor import Policy
from neuroweaver.trainer.data.rows import Example, Message
from neuroweaver.trainer.data.split import split
from neuroweaver.trainer.domain.config import DEFAULTS
from neuroweaver.trainer.domain.job import Job
from neuroweaver.trainer.rpc import jobs, watches
from neuroweaver.v1 import trainer_pb2 as pb
from neuroweaver.v1 import worker_pb2
from trainer.serving import Trainer, trainer

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
ROW = '{"question": "Why do brakes squeal?", "answer": "The pads are worn."}\n'


def held_out_beyond(tokens: int) -> str:
    """Rows of which a job holds out the one that asks at such length that no answer begins within `tokens`."""
    for number in range(100):
        asked = [f"Why does part {number}{letter} squeal?" for letter in "abcd"]
        asked[-1] += " Why?" * tokens
        rows = [Example((Message("user", text),), line) for line, text in enumerate(asked)]
        _, held_out = split(rows, DEFAULTS.validation_fraction, DEFAULTS.seed)
        if [row.line for row in held_out] == [3]:
            return "".join(ROW.replace("Why do brakes squeal?", text) for text in asked)
    raise AssertionError("no such rows")


class Monotonic:
    """A monotonic clock that goes when the test says so."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def start(config: pb.TrainingConfig, job_id: str = "job", request_id: str = "") -> pb.StartTrainingRequest:
    return pb.StartTrainingRequest(job_id=job_id, config=config, request_id=request_id)


def progress(step: int) -> pb.TrainingEvent:
    return pb.TrainingEvent(progress=pb.Progress(stage=pb.STAGE_SFT, step=step, loss=1.0 / step))


def finished(state: pb.JobState.ValueType, **fields: object) -> pb.TrainingEvent:
    return pb.TrainingEvent(finished=pb.JobFinished(state=state, **fields))


async def refusal(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_an_accepted_job_shows_the_configuration_in_force(
    served: Trainer, config: pb.TrainingConfig
) -> None:
    job = await served.stub.StartTraining(start(config))

    assert job.state == pb.JOB_STATE_QUEUED
    assert job.config.lora_r == 16
    assert job.config.max_seq_length == 512  # the tiny model's context
    assert len(job.dataset_digest) == 64


async def test_a_job_without_an_id_gets_one(served: Trainer, config: pb.TrainingConfig) -> None:
    job = await served.stub.StartTraining(start(config, job_id=""))
    assert len(job.job_id) == 26


BAD = {
    "unknown base model": ({"base_model": "no-such-model"}, "config.base_model", "no-such-model"),
    "unknown specialisation": (
        {"specialization": "service_adviser"},
        "config.specialization",
        "did you mean service_advisor",
    ),
    "missing data set": ({"dataset_path": "nothing.jsonl"}, "config.dataset_path", "nothing.jsonl"),
    "path outside": ({"dataset_path": "../../etc/passwd"}, "config.dataset_path", ""),
    "absolute path outside": ({"dataset_path": "/etc/passwd"}, "config.dataset_path", ""),
    "empty data set": ({"dataset_path": "empty.jsonl"}, "config.dataset_path", "empty.jsonl"),
    "invalid UTF-8": ({"dataset_path": "latin1.jsonl"}, "config.dataset_path", "latin1.jsonl:2"),
    "malformed line": ({"dataset_path": "malformed.jsonl"}, "config.dataset_path", "malformed.jsonl:3"),
    "over-long line": ({"dataset_path": "long.jsonl"}, "config.dataset_path", "long.jsonl:2"),
    "no usable rows": ({"dataset_path": "useless.jsonl"}, "config.dataset_path", "useless.jsonl"),
    "no row left": ({"dataset_path": "bad.jsonl"}, "config.dataset_path", "bad.jsonl:1: label: left out"),
    "plain text with RLAIF": (
        {"dataset_path": "text.jsonl"},
        "config.enable_rlaif",
        "text.jsonl has 1: add rows that ask, or set enable_rlaif to false",
    ),
    "one conversation": ({"dataset_path": "one.jsonl"}, "config.dataset_path", "holds one conversation"),
    "one question to learn": (
        {"dataset_path": "two.jsonl"},
        "config.enable_rlaif",
        "among the 1 rows to learn from, which have 1 (1 are held out)",
    ),
    "no answer to learn": (
        {"max_seq_length": 16},
        "config.max_seq_length",
        "none of the 2 rows to learn from has an answer within 16 tokens",
    ),
    "no answer to measure": (
        {"dataset_path": "held-out.jsonl", "max_seq_length": 400},
        "config.max_seq_length",
        "none of the 1 rows held out for validation has an answer within 400 tokens",
    ),
    "NaN": ({"learning_rate": float("nan")}, "config.learning_rate", ""),
    "infinite": ({"learning_rate": float("inf")}, "config.learning_rate", ""),
    "negative": ({"lora_r": -1}, "config.lora_r", ""),
    "zero epochs": ({"epochs": 0.0}, "config.epochs", ""),
    "unknown enum": ({"quantization": 17}, "config.quantization", ""),
    "bad model name": ({"model_name": "Service Advisor"}, "config.model_name", ""),
    "hostile output folder": ({"output_dir": "../out"}, "config.output_dir", ""),
    "beyond the context": ({"max_seq_length": 4096}, "config.max_seq_length", "512"),
    "warm-up to the end": ({"warmup_steps": 3}, "config.warmup_steps", "3 steps over 2 rows to learn from"),
    "unknown layers": (
        {"target_modules": ["query_key_value"]},
        "config.target_modules",
        "named query_key_value; it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
    ),
    "half-known layers": (
        {"target_modules": ["q_proj", "value_proj"]},
        "config.target_modules",
        "named value_proj;",
    ),
    "judge without endpoint": ({"feedback_model": "gpt-x"}, "config.feedback_model", "OPENAI_API_KEY"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_refused_with_its_field_before_any_worker(
    name: str, served: Trainer, config: pb.TrainingConfig
) -> None:
    data = served.data
    (data / "empty.jsonl").write_bytes(b"")
    (data / "latin1.jsonl").write_bytes(ROW.encode() + ROW.replace("Why", "Pourquoi ça").encode("latin-1"))
    (data / "malformed.jsonl").write_text(ROW + ROW + '{"question": "cut\n')
    (data / "long.jsonl").write_text(ROW + ROW.replace("worn", "w" * 2_000_000))
    (data / "useless.jsonl").write_text('{"colour": "red"}\n')
    (data / "bad.jsonl").write_text(ROW.replace("}", ', "label": false}'))
    (data / "one.jsonl").write_text(ROW + ROW.replace("pads", "discs"))
    (data / "two.jsonl").write_text(ROW + ROW.replace("brakes", "tyres"))
    (data / "held-out.jsonl").write_text(held_out_beyond(400))
    (data / "text.jsonl").write_text(ROW + '{"text": "Pads wear."}\n{"text": "Tyres wear."}\n')
    changes, field, text = BAD[name]
    config.MergeFrom(pb.TrainingConfig(**changes))

    error = await refusal(served.stub.StartTraining(start(config)))

    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    found = [description for path, description in violations(error) if path == field]
    assert found, violations(error)
    assert text in found[0]
    assert "Traceback" not in (error.details() or "")
    assert served.executor.started == []
    assert len((await served.stub.ListTrainingJobs(pb.ListTrainingJobsRequest())).jobs) == 0


async def test_a_field_that_the_server_does_not_know_is_refused(
    served: Trainer, config: pb.TrainingConfig
) -> None:
    config.MergeFromString(b"\xf8\x3f\x01")  # field 1023, a varint

    error = await refusal(served.stub.StartTraining(start(config)))

    assert violations(error) == [
        ("config", "has fields unknown to this server (numbers 1023); leave them out")
    ]


async def test_an_algorithm_that_is_not_offered_says_so(served: Trainer, config: pb.TrainingConfig) -> None:
    config.algorithm = pb.ALGORITHM_DPO
    error = await refusal(served.stub.StartTraining(start(config)))

    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "dpo" in (error.details() or "")


@pytest.mark.parametrize("method", ["EstimateTraining", "EvaluateModel"])
async def test_what_is_not_offered_yet_answers_unimplemented_in_words(
    method: str, served: Trainer, config: pb.TrainingConfig
) -> None:
    if method == "EstimateTraining":
        error = await refusal(served.stub.EstimateTraining(pb.EstimateTrainingRequest(config=config)))
    else:
        request = pb.EvaluateModelRequest(model_a="a", model_b="b", specialization="service_advisor")
        error = await refusal(anext(aiter(served.stub.EvaluateModel(request))))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "this server" in (error.details() or "")


async def test_a_repeated_request_starts_one_job(served: Trainer, config: pb.TrainingConfig) -> None:
    first = await served.stub.StartTraining(start(config, job_id="", request_id="r1"))
    (served.data / "good.jsonl").unlink()  # the answer is the first one whatever has changed since
    second = await served.stub.StartTraining(start(config, job_id="", request_id="r1"))

    assert second == first
    assert len((await served.stub.ListTrainingJobs(pb.ListTrainingJobsRequest())).jobs) == 1


async def test_a_retry_is_answered_before_the_data_set_is_read(
    served: Trainer, config: pb.TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await served.stub.StartTraining(start(config, request_id="r1"))
    read: list[pb.TrainingConfig] = []
    monkeypatch.setattr(jobs, "admit", lambda config, _capabilities: read.append(config))

    assert await served.stub.StartTraining(start(config, request_id="r1")) == first
    assert read == []


async def test_a_request_id_of_another_request_is_refused(served: Trainer, config: pb.TrainingConfig) -> None:
    await served.stub.StartTraining(start(config, request_id="r1"))
    error = await refusal(served.stub.StartTraining(start(config, job_id="other", request_id="r1")))
    assert [field for field, _ in violations(error)] == ["request_id"]


async def test_a_taken_id_and_a_taken_folder_are_refused(served: Trainer, config: pb.TrainingConfig) -> None:
    await served.stub.StartTraining(start(config))
    again = await refusal(served.stub.StartTraining(start(config)))
    config.output_dir = "job"
    folder = await refusal(served.stub.StartTraining(start(config, job_id="other")))

    assert (again.code(), folder.code()) == (grpc.StatusCode.ALREADY_EXISTS,) * 2


async def test_a_watch_replays_history_follows_and_ends_with_the_job(
    served: Trainer, config: pb.TrainingConfig
) -> None:
    await served.stub.StartTraining(start(config))
    worker = await served.executor.worker()
    await served.report(worker, progress(1), progress(2))

    watch = served.stub.WatchTraining(pb.WatchTrainingRequest(job_id="job"))
    seen = [await watch.read() for _ in range(3)]
    await served.report(worker, finished(pb.JOB_STATE_SUCCEEDED), first=3)
    seen += [event async for event in watch]

    assert [event.sequence for event in seen] == [1, 2, 3, 4]
    assert [event.WhichOneof("event") for event in seen] == [
        "state_changed",
        "progress",
        "progress",
        "finished",
    ]
    assert await watch.code() == grpc.StatusCode.OK


async def test_a_watch_goes_on_after_the_sequence_it_names(
    served: Trainer, config: pb.TrainingConfig
) -> None:
    await served.stub.StartTraining(start(config))
    worker = await served.executor.worker()
    await served.report(worker, progress(1), finished(pb.JOB_STATE_SUCCEEDED))

    watch = served.stub.WatchTraining(pb.WatchTrainingRequest(job_id="job", since_sequence=2))

    assert [event.sequence async for event in watch] == [3]


async def test_a_watch_beyond_the_last_event_is_out_of_range(
    served: Trainer, config: pb.TrainingConfig
) -> None:
    await served.stub.StartTraining(start(config))
    watch = served.stub.WatchTraining(pb.WatchTrainingRequest(job_id="job", since_sequence=99))
    error = await refusal(watch.read())
    assert error.code() == grpc.StatusCode.OUT_OF_RANGE
    lines = served.stub.WatchLogs(pb.WatchLogsRequest(job_id="job", since_sequence=1))
    assert (await refusal(lines.read())).code() == grpc.StatusCode.OUT_OF_RANGE


async def test_a_watch_of_a_job_that_has_ended_ends_at_once(
    served: Trainer, config: pb.TrainingConfig
) -> None:
    await served.stub.StartTraining(start(config))
    worker = await served.executor.worker()
    await served.report(worker, finished(pb.JOB_STATE_SUCCEEDED))

    watch = served.stub.WatchTraining(pb.WatchTrainingRequest(job_id="job", since_sequence=2))

    assert [event async for event in watch] == []


async def test_a_silent_job_sends_heartbeats_with_the_last_sequence(
    served: Trainer, config: pb.TrainingConfig
) -> None:
    await served.stub.StartTraining(start(config))
    await served.executor.worker()

    served.store.topics.heartbeats = Heartbeats(0.01)
    async with aclosing(watches.events(served.store, "default", "job", 1)) as events:
        assert (await anext(events)).heartbeat.sequence == 1
    async with aclosing(watches.logs(served.store, "default", "job", 0, is_followed=True)) as lines:
        assert await anext(lines) == pb.LogLine(sequence=0)


async def test_a_repeated_report_is_stored_once(served: Trainer, config: pb.TrainingConfig) -> None:
    await served.stub.StartTraining(start(config))
    worker = await served.executor.worker()

    await served.report(worker, progress(1), progress(2))
    answer = await served.report(worker, progress(1), progress(2), progress(3))

    assert answer.acknowledged == 3
    job = await served.stub.GetTrainingJob(pb.GetTrainingJobRequest(job_id="job"))
    assert job.last_sequence == 4  # started, and three steps


async def test_cancelling_tells_the_worker_at_once(served: Trainer, config: pb.TrainingConfig) -> None:
    await served.stub.StartTraining(start(config))
    worker = await served.executor.worker()
    call = served.worker_stub.Report(metadata=worker.metadata)
    await call.write(worker_pb2.ReportRequest(job_id="job", lease_token=worker.job.lease_token))
    assert (await call.read()).should_stop is False

    await served.stub.CancelTraining(pb.CancelTrainingRequest(job_id="job"))

    async with asyncio.timeout(120):
        assert (await call.read()).should_stop is True
    await call.done_writing()
    await served.report(worker, finished(pb.JOB_STATE_CANCELLED))
    assert (await served.state("job", pb.JOB_STATE_CANCELLED)).HasField("end_time")


async def test_a_worker_that_does_not_stop_is_killed(home: Path, config: pb.TrainingConfig) -> None:
    clock = Monotonic()
    policy = Policy(cancel_s=120, shutdown_s=0.1)
    async with trainer(home, policy=policy, monotonic=clock) as served:
        await served.stub.StartTraining(start(config))
        worker = await served.executor.worker()
        await served.stub.CancelTraining(pb.CancelTrainingRequest(job_id="job"))
        await served.supervisor.end_lost()
        for number, now_s in enumerate((100, 120), 1):
            clock.now_s = now_s
            await served.report(worker, progress(now_s), first=number)  # at work, and not stopping
            await served.supervisor.end_lost()
            assert not worker.ended.done()

        clock.now_s = 121
        await served.supervisor.end_lost()
        await served.state("job", pb.JOB_STATE_CANCELLED)
        assert worker.ended.done()


@pytest.mark.parametrize(
    ("status", "out_of_memory", "expected"),
    [(-9, False, "WORKER_KILLED"), (-9, True, "OUT_OF_MEMORY"), (1, False, "WORKER_ENDED")],
)
async def test_a_worker_that_dies_fails_its_job_with_the_reason_and_it_can_be_resumed(
    status: int, out_of_memory: bool, expected: str, served: Trainer, config: pb.TrainingConfig
) -> None:
    await served.stub.StartTraining(start(config))
    worker = await served.executor.worker()
    await served.report(worker, progress(1))
    worker.end(status, ran_out_of_memory=out_of_memory)

    job = await served.state("job", pb.JOB_STATE_FAILED)
    assert (job.failure.reason, job.failure.is_resumable) == (expected, True)
    assert job.failure.stage == pb.STAGE_SFT

    await served.stub.ResumeTraining(pb.ResumeTrainingRequest(job_id="job"))
    again = await served.executor.worker(2)
    assert again.job.lease_token == 2
    assert (await served.state("job", pb.JOB_STATE_RUNNING)).attempt == 2


async def test_a_worker_of_an_earlier_attempt_is_fenced_off(
    served: Trainer, config: pb.TrainingConfig
) -> None:
    await served.stub.StartTraining(start(config))
    first = await served.executor.worker()
    first.end(-9)
    await served.state("job", pb.JOB_STATE_FAILED)
    await served.stub.ResumeTraining(pb.ResumeTrainingRequest(job_id="job"))
    await served.executor.worker(2)

    error = await refusal(served.report(first, finished(pb.JOB_STATE_SUCCEEDED)))

    assert (error.code(), reason(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST")
    assert (
        await served.stub.GetTrainingJob(pb.GetTrainingJobRequest(job_id="job"))
    ).state == pb.JOB_STATE_RUNNING


async def test_a_silent_worker_is_lost_and_killed(home: Path, config: pb.TrainingConfig) -> None:
    clock = Monotonic()
    async with trainer(home, policy=Policy(lease_s=60, shutdown_s=0.1), monotonic=clock) as served:
        await served.stub.StartTraining(start(config))
        worker = await served.executor.worker()
        clock.now_s = 50
        await served.report(worker, progress(1))
        clock.now_s = 110
        await served.supervisor.end_lost()
        assert not worker.ended.done()

        clock.now_s = 111
        await served.supervisor.end_lost()
        job = await served.state("job", pb.JOB_STATE_FAILED)
        assert (job.failure.reason, job.failure.message) == (
            "WORKER_LOST",
            "the worker has not reported for 61 s",
        )
        assert worker.ended.done()


async def test_telling_a_silent_worker_to_stop_is_no_sign_of_its_life(
    home: Path, config: pb.TrainingConfig
) -> None:
    clock = Monotonic()
    async with trainer(home, policy=Policy(lease_s=60, shutdown_s=0.1), monotonic=clock) as served:
        await served.stub.StartTraining(start(config))
        worker = await served.executor.worker()
        call = served.worker_stub.Report(metadata=worker.metadata)
        await call.write(worker_pb2.ReportRequest(job_id="job", lease_token=worker.job.lease_token))
        assert (await call.read()).should_stop is False

        clock.now_s = 50
        await served.stub.CancelTraining(pb.CancelTrainingRequest(job_id="job"))
        assert (await call.read()).should_stop is True
        clock.now_s = 61
        await served.supervisor.end_lost()

        await served.state("job", pb.JOB_STATE_CANCELLED)
        assert worker.ended.done()


async def test_one_worker_at_a_time_takes_the_jobs_in_order(
    served: Trainer, config: pb.TrainingConfig
) -> None:
    for name in ("first", "second"):
        await served.stub.StartTraining(start(config, job_id=name))
    worker = await served.executor.worker()
    assert worker.job.job_id == "first"
    assert (
        await served.stub.GetTrainingJob(pb.GetTrainingJobRequest(job_id="second"))
    ).state == pb.JOB_STATE_QUEUED

    await served.report(worker, finished(pb.JOB_STATE_SUCCEEDED))

    assert (await served.executor.worker(2)).job.job_id == "second"


async def test_a_trainer_that_restarts_hears_its_worker_again(home: Path, config: pb.TrainingConfig) -> None:
    async with trainer(home) as served:
        await served.stub.StartTraining(start(config))
        worker = await served.executor.worker()
        await served.report(worker, progress(1))
        served.supervisor._workers.clear()  # killed, not closed: its worker lives on
        for task in list(served.supervisor._tending):
            task.cancel()

    async with trainer(home) as again:
        job = await again.stub.GetTrainingJob(pb.GetTrainingJobRequest(job_id="job"))
        assert job.state == pb.JOB_STATE_RUNNING
        await again.report(worker, progress(2), finished(pb.JOB_STATE_SUCCEEDED), first=2)
        await again.state("job", pb.JOB_STATE_SUCCEEDED)
        assert again.executor.started == []


async def test_a_job_that_was_given_away_and_never_begun_is_queued_again(
    home: Path, config: pb.TrainingConfig
) -> None:
    async with trainer(home) as served:
        await served.stub.StartTraining(start(config))
        await served.executor.worker()
        served.supervisor._workers.clear()  # killed before its worker was
        for task in list(served.supervisor._tending):
            task.cancel()

    clock = Monotonic()
    async with trainer(home, monotonic=clock) as again:
        await again.supervisor.end_lost()
        clock.now_s = 61
        await again.supervisor.end_lost()
        assert (await again.executor.worker()).job.attempt == 2


async def test_a_trainer_that_shuts_down_queues_its_jobs_again(home: Path, config: pb.TrainingConfig) -> None:
    async with trainer(home) as served:
        await served.stub.StartTraining(start(config))
        worker = await served.executor.worker()
        await served.report(worker, progress(1))
    assert worker.was_stopped

    async with trainer(home) as again:
        assert (await again.executor.worker()).job.attempt == 2


async def test_jobs_are_listed_newest_first_in_pages_and_filtered(
    served: Trainer, config: pb.TrainingConfig
) -> None:
    for number in range(5):
        if number == 1:
            await served.executor.worker()  # the first job runs, the others wait
        config.model_name = "even" if number % 2 == 0 else "odd"
        await served.stub.StartTraining(start(config, job_id=f"job-{number}"))

    first = await served.stub.ListTrainingJobs(pb.ListTrainingJobsRequest(page_size=3))
    rest = await served.stub.ListTrainingJobs(
        pb.ListTrainingJobsRequest(page_size=3, page_token=first.next_page_token)
    )
    even = await served.stub.ListTrainingJobs(
        pb.ListTrainingJobsRequest(filter="model_name=even AND state=QUEUED")
    )
    running = await served.stub.ListTrainingJobs(pb.ListTrainingJobsRequest(filter="state = RUNNING"))

    assert [job.job_id for job in (*first.jobs, *rest.jobs)] == [f"job-{n}" for n in (4, 3, 2, 1, 0)]
    assert rest.next_page_token == ""
    assert [job.job_id for job in even.jobs] == ["job-4", "job-2"]
    assert [job.job_id for job in running.jobs] == ["job-0"]


@pytest.mark.parametrize("text", ["state=SLEEPING", "colour=red", "model_name"])
async def test_a_filter_that_cannot_be_read_names_its_field(text: str, served: Trainer) -> None:
    error = await refusal(served.stub.ListTrainingJobs(pb.ListTrainingJobsRequest(filter=text)))
    assert [field for field, _ in violations(error)] == ["filter"]


async def test_an_unknown_job_is_not_found(served: Trainer) -> None:
    for method, request in (
        ("GetTrainingJob", pb.GetTrainingJobRequest(job_id="none")),
        ("CancelTraining", pb.CancelTrainingRequest(job_id="none")),
        ("ResumeTraining", pb.ResumeTrainingRequest(job_id="none")),
    ):
        error = await refusal(getattr(served.stub, method)(request))
        assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_log_lines_are_kept_and_replayed(served: Trainer, config: pb.TrainingConfig) -> None:
    await served.stub.StartTraining(start(config))
    worker = await served.executor.worker()
    call = served.worker_stub.Report(metadata=worker.metadata)
    for number in (1, 2):
        await call.write(
            worker_pb2.ReportRequest(
                job_id="job",
                lease_token=worker.job.lease_token,
                number=number,
                log=pb.LogLine(level="INFO", message=f"line {number}"),
            )
        )
        await call.read()
    await call.done_writing()

    lines = [line async for line in served.stub.WatchLogs(pb.WatchLogsRequest(job_id="job"))]

    assert [(line.sequence, line.message) for line in lines] == [(1, "line 1"), (2, "line 2")]


async def test_a_data_set_is_examined_line_by_line_with_what_the_loss_sees(
    served: Trainer, config: pb.TrainingConfig
) -> None:
    (served.data / "mixed.jsonl").write_text(ROW + '{"question": "no answer"}\n')
    answer = await served.stub.ValidateDataset(
        pb.ValidateDatasetRequest(
            dataset_path="mixed.jsonl", base_model=config.base_model, specialization="service_advisor"
        )
    )

    assert (answer.is_usable, answer.rows, answer.usable_rows) == (False, 2, 1)
    assert answer.findings[0].line == 2
    assert (
        "".join(part.text for part in answer.preview if part.is_trained).strip()
        == "The pads are worn.<|im_end|>"
    )
    assert 0 < answer.trained_tokens < answer.total_tokens


async def test_plain_text_trains_without_rlaif(served: Trainer, config: pb.TrainingConfig) -> None:
    (served.data / "text.jsonl").write_text('{"text": "Pads wear."}\n{"text": "Tyres wear."}\n')
    config.dataset_path = "text.jsonl"
    config.enable_rlaif = False
    assert (await served.stub.StartTraining(start(config))).state == pb.JOB_STATE_QUEUED


async def test_a_validation_cuts_rows_where_a_job_does_and_tells_of_those_without_an_answer(
    served: Trainer, config: pb.TrainingConfig
) -> None:
    (served.data / "long.jsonl").write_text(ROW + ROW.replace("brakes", "brakes and brakes " * 200))
    request = pb.ValidateDatasetRequest(dataset_path="long.jsonl", base_model=config.base_model)
    answer = await served.stub.ValidateDataset(request)

    assert answer.truncated_rows == 1
    assert [finding.reason for finding in answer.findings] == [
        "1 rows have no answer within 512 tokens; a job leaves them out"
    ]
    assert answer.is_usable


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset_path", "nothing.jsonl"),
        ("specialization", "service_adviser"),
        ("base_model", "no-such-model"),
    ],
)
async def test_what_is_wrong_with_a_request_for_validation_is_named_by_its_own_field(
    field: str, value: str, served: Trainer
) -> None:
    request = pb.ValidateDatasetRequest(dataset_path="good.jsonl")
    setattr(request, field, value)
    error = await refusal(served.stub.ValidateDataset(request))
    assert [path for path, _ in violations(error)] == [field]


async def test_every_specialisation_is_listed_with_prompts_and_rubric(served: Trainer) -> None:
    templates = (await served.stub.ListTemplates(pb.ListTemplatesRequest())).templates

    assert [each.id for each in templates] == [
        "finance_advisor",
        "parts_specialist",
        "sales_assistant",
        "service_advisor",
    ]
    for each in templates:
        assert len(each.evaluation_prompts) == 20
        assert sum(criterion.weight for criterion in each.rubric) == pytest.approx(1)
    assert json_format.MessageToJson(templates[0])


async def test_the_same_store_rules_hold_on_postgresql(
    home: Path, config: pb.TrainingConfig, postgres_url: str
) -> None:
    async with trainer(home, database_url=postgres_url) as served:
        await served.stub.StartTraining(start(config, request_id="r"))
        worker = await served.executor.worker()
        await served.report(worker, progress(1), finished(pb.JOB_STATE_SUCCEEDED))
        watch = served.stub.WatchTraining(pb.WatchTrainingRequest(job_id="job"))
        assert [event.sequence async for event in watch] == [1, 2, 3]
        assert len((await served.stub.ListTrainingJobs(pb.ListTrainingJobsRequest())).jobs) == 1


async def test_a_database_that_is_away_for_long_costs_no_worker(
    home: Path, config: pb.TrainingConfig
) -> None:
    folder = postgres.binaries()
    if folder is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    clock = Monotonic()
    with postgres.controlled(folder) as database:
        async with trainer(home, database.database(), monotonic=clock) as served, asyncio.timeout(120):
            await served.stub.StartTraining(start(config))
            worker = await served.executor.worker()
            await served.report(worker, progress(1))

            await asyncio.to_thread(database.stop)
            assert (await refusal(served.report(worker, progress(2), first=2))).code() is UNAVAILABLE
            clock.now_s = 10_000
            await fail_to_look(2)
            await asyncio.to_thread(database.start)

            # The trainer looks after its workers again, and has not taken this one for lost.
            looked = asyncio.Event()
            served.store.held, held = looking(served.store.held, looked), served.store.held
            await looked.wait()
            served.store.held = held
            await served.report(worker, progress(2), progress(3), first=2)
            job = await served.stub.GetTrainingJob(pb.GetTrainingJobRequest(job_id="job"))
            assert (job.state, job.progress.step) == (pb.JOB_STATE_RUNNING, 3)
            assert not worker.ended.done()


async def test_the_end_of_a_worker_is_noted_once_the_database_is_back(
    served: Trainer, config: pb.TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FIRST_BACKOFF_S", 0.01)
    await served.stub.StartTraining(start(config))
    worker = await served.executor.worker()
    transact, tries = served.store.transact, asyncio.Semaphore(0)

    async def away(*_: object) -> None:
        tries.release()
        raise OperationalError("", {}, ConnectionError("refused"))

    monkeypatch.setattr(served.store, "transact", away)
    worker.end(-9)
    for _ in range(3):
        await asyncio.wait_for(tries.acquire(), 60)
    monkeypatch.setattr(served.store, "transact", transact)

    assert (await served.state("job", pb.JOB_STATE_FAILED)).failure.reason == "WORKER_KILLED"


async def test_a_trainer_that_ends_without_its_database_does_not_wait_for_it(
    home: Path, config: pb.TrainingConfig
) -> None:
    async def away(*_: object) -> None:
        raise OperationalError("", {}, ConnectionError("refused"))

    async with trainer(home) as served:
        await served.stub.StartTraining(start(config))
        worker = await served.executor.worker()
        served.store.transact = away
    assert worker.was_stopped


@pytest.mark.parametrize(
    ("error", "reason_told", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "DISK_FULL", "No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "/home"), "INTERNAL", "Read-only file system"),
        (ValueError("embedded null byte"), "INTERNAL", "the trainer's log has the details"),
    ],
)
async def test_a_worker_that_cannot_be_started_fails_its_job_and_not_the_trainer(
    error: Exception,
    reason_told: str,
    message: str,
    served: Trainer,
    config: pb.TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(served.executor, "start", fail)
        await served.stub.StartTraining(start(config))
        failure = (await served.state("job", pb.JOB_STATE_FAILED)).failure
    assert (failure.reason, failure.is_resumable) == (reason_told, True)
    assert failure.message.endswith(message)

    await served.stub.ResumeTraining(pb.ResumeTrainingRequest(job_id="job"))
    assert (await served.executor.worker()).job.attempt == 2


async def fail_to_look(times: int) -> None:
    """Returns when the supervisor has failed to look after its workers some times more."""

    def failures() -> float:
        return REGISTRY.get_sample_value("neuroweaver_loop_failures_total", {"loop": "supervisor"}) or 0.0

    give_up, enough = asyncio.get_running_loop().time() + 60, failures() + times
    while failures() < enough:
        assert asyncio.get_running_loop().time() < give_up
        await asyncio.sleep(0.05)


def looking(held: Callable[[], Awaitable[list[Job]]], looked: asyncio.Event) -> Callable[[], Any]:
    """As `held`; sets `looked` when it is called for the second time after one that succeeded."""
    succeeded = 0

    async def look() -> list[Job]:
        nonlocal succeeded
        if succeeded:
            looked.set()
        jobs = await held()
        succeeded += 1
        return jobs

    return look
