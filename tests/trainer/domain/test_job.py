from __future__ import annotations

from datetime import UTC, datetime

import pytest

from neuroweaver.mesh.wire.errors import FailedPrecondition
from neuroweaver.trainer.domain.job import Job, State
from neuroweaver.v1 import trainer_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job(**changes: object) -> Job:
    fields = {
        "job_id": "j",
        "project": "default",
        "config": pb.TrainingConfig(model_name="m"),
        "dataset_digest": "",
        "create_time": NOW,
        **changes,
    }
    return Job(**fields)


def finished(state: State.ValueType, **fields: object) -> pb.TrainingEvent:
    return pb.TrainingEvent(finished=pb.JobFinished(state=state, **fields))


def test_starting_a_job_gives_it_a_new_lease_and_counts_the_attempt() -> None:
    started = job().start(NOW, "digest")

    assert (started.state, started.attempt, started.lease_token) == (State.JOB_STATE_RUNNING, 1, 1)
    assert started.holds_lease(1)
    assert not started.holds_lease(0)


def test_a_resumed_job_fences_off_the_worker_before() -> None:
    failed = (
        job()
        .start(NOW, "digest")
        .observe(finished(State.JOB_STATE_FAILED, failure=pb.Failure(is_resumable=True)), NOW)
    )
    queued = failed.resume(NOW)
    again = queued.start(NOW, "digest")

    assert queued.failure is None
    assert not again.holds_lease(1)
    assert again.holds_lease(2)
    assert again.attempt == 2
    assert again.failure is None


def test_cancelling_a_queued_job_ends_it_at_once_and_a_running_one_asks_its_worker() -> None:
    assert job().cancel(NOW).state == State.JOB_STATE_CANCELLED
    assert job().start(NOW, "digest").cancel(NOW).state == State.JOB_STATE_CANCELLING


def test_cancelling_an_ended_job_changes_nothing() -> None:
    ended = job().cancel(NOW)
    assert ended.cancel(NOW) is ended


@pytest.mark.parametrize("state", [State.JOB_STATE_FAILED, State.JOB_STATE_CANCELLED, State.JOB_STATE_QUEUED])
def test_a_worker_that_stops_after_a_cancel_leaves_the_job_cancelled(state: State.ValueType) -> None:
    stopped = job().start(NOW, "digest").cancel(NOW).observe(finished(state), NOW)
    assert stopped.state == State.JOB_STATE_CANCELLED


def test_a_worker_that_finished_before_it_heard_of_the_cancel_has_succeeded() -> None:
    done = job().start(NOW, "digest").cancel(NOW).observe(finished(State.JOB_STATE_SUCCEEDED), NOW)
    assert done.state == State.JOB_STATE_SUCCEEDED


def test_a_worker_that_was_shut_down_gives_the_job_back_to_the_queue() -> None:
    released = job().start(NOW, "digest").observe(finished(State.JOB_STATE_QUEUED), NOW)
    assert released.state == State.JOB_STATE_QUEUED


@pytest.mark.parametrize(("verb", "arguments"), [("resume", (NOW,)), ("start", (NOW, "digest"))])
def test_a_running_job_can_neither_be_started_nor_resumed(verb: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises(FailedPrecondition, match="RUNNING"):
        getattr(job().start(NOW, "digest"), verb)(*arguments)


def test_a_failure_that_a_resume_cannot_mend_refuses_it() -> None:
    failure = pb.Failure(reason="DATASET_CHANGED", message="the data set changed", is_resumable=False)
    failed = job().start(NOW, "digest").observe(finished(State.JOB_STATE_FAILED, failure=failure), NOW)

    with pytest.raises(FailedPrecondition, match="the data set changed"):
        failed.resume(NOW)


def test_progress_moves_the_stage_and_is_kept_as_an_event() -> None:
    event = pb.TrainingEvent(progress=pb.Progress(stage=pb.STAGE_PPO, step=3, reward=0.5))
    seen = job().start(NOW, "digest").observe(event, NOW)

    assert seen.stage == pb.STAGE_PPO
    assert seen.progress is not None
    assert seen.progress.reward == 0.5
    assert seen.events[-1].progress.step == 3


def test_the_end_of_a_job_is_one_event_with_its_result() -> None:
    result = pb.TrainingResult(model_id="m", version="1.0.0")
    done = job().start(NOW, "digest").observe(finished(State.JOB_STATE_SUCCEEDED, result=result), NOW)

    assert [each.WhichOneof("event") for each in done.events] == ["state_changed", "finished"]
    assert done.events[-1].finished.result.version == "1.0.0"
    assert done.end_time == NOW
