# ruff: noqa: N802 - methods are named as their RPCs
from __future__ import annotations

import time

import grpc
import pytest

from clients import scripted
from clients.fakes import FakeTrainer, serving
from neuroweaver.client import Client
from neuroweaver.client.connection import resumed
from neuroweaver.v1 import trainer_pb2


class Broken(grpc.RpcError):
    def __init__(self, code=grpc.StatusCode.UNAVAILABLE):
        super().__init__()
        self._code = code

    def code(self):
        return self._code


def event(sequence):
    return trainer_pb2.TrainingEvent(sequence=sequence)


def test_a_broken_stream_is_resumed_after_the_last_event_seen(fake_trainer):
    fake_trainer.breaks_after = [3, 1, 0]
    broken = []

    with serving(fake_trainer) as address, Client({"trainer": address}) as client:
        seen = list(client.watch_training(scripted.JOB_ID, on_break=broken.append))

    assert [each.sequence for each in seen] == list(range(1, len(fake_trainer.events) + 1))
    assert {0, 3, 4} <= {request.since_sequence for request in fake_trainer.requests}
    assert len(broken) >= 2
    assert {error.code() for error in broken} == {grpc.StatusCode.UNAVAILABLE}


def test_heartbeats_are_not_events(fake_trainer):
    with serving(fake_trainer) as address, Client({"trainer": address}) as client:
        kinds = {each.WhichOneof("event") for each in client.watch_training(scripted.JOB_ID)}

    assert "finished" in kinds
    assert "heartbeat" not in kinds


def test_watching_begins_after_the_sequence_that_is_asked_for(fake_trainer):
    last = len(fake_trainer.events)
    with serving(fake_trainer) as address, Client({"trainer": address}) as client:
        [only] = client.watch_training(scripted.JOB_ID, last - 1)

    assert only.WhichOneof("event") == "finished"


def test_a_watch_whose_server_stays_away_ends_when_patience_is_over():
    attempts = []

    def opened(since):
        attempts.append(since)
        if len(attempts) == 1:
            yield event(1)
        raise Broken

    with pytest.raises(Broken):
        list(resumed(opened, 0, patience_s=0.05, sleep=lambda _: time.sleep(0.03)))

    assert len(attempts) > 1


def test_a_watch_of_a_server_that_never_answered_does_not_wait():
    def opened(_since):
        raise Broken
        yield

    with pytest.raises(Broken):
        list(resumed(opened, 0, patience_s=60, sleep=pytest.fail))


def test_each_message_renews_the_patience():
    streams = iter([[event(1), Broken()], [event(1), Broken()], [Broken()], [event(2)]])
    asked = []

    def opened(since):
        asked.append(since)
        for each in next(streams):
            if isinstance(each, Broken):
                raise each
            yield each

    pauses = []
    seen = list(resumed(opened, 0, patience_s=60, sleep=pauses.append))

    assert [each.sequence for each in seen] == [1, 2]
    assert asked == [0, 1, 1, 1]
    assert pauses[2] > pauses[0]


def test_an_error_that_a_retry_cannot_mend_is_raised():
    def opened(_since):
        yield event(1)
        raise Broken(grpc.StatusCode.OUT_OF_RANGE)

    stream = resumed(opened, 0, patience_s=60, sleep=pytest.fail)
    next(stream)
    with pytest.raises(Broken):
        next(stream)


def test_lists_are_read_page_by_page_up_to_the_limit(fake_trainer):
    with serving(fake_trainer) as address, Client({"trainer": address}) as client:
        assert [job.job_id for job in client.jobs()] == [scripted.JOB_ID, "older"]
        assert [job.job_id for job in client.jobs(limit=1)] == [scripted.JOB_ID]


def test_a_unary_call_carries_a_deadline_and_the_callers_trace(spans):
    from neuroweaver.mesh.wire import telemetry

    class Asked(FakeTrainer):
        def GetTrainingJob(self, request, context):
            self.requests.append((context.time_remaining(), dict(context.invocation_metadata())))
            return self.job

    trainer = Asked()
    with serving(trainer) as address, Client({"trainer": address}, timeout_s=30) as client:
        with telemetry.tracer.start_as_current_span("command"):
            trace_id = telemetry.current_trace_id()
            client.trainer.GetTrainingJob(trainer_pb2.GetTrainingJobRequest(job_id="x"))
        client.trainer.GetTrainingJob(trainer_pb2.GetTrainingJobRequest(job_id="x"), timeout=500)

    (first_s, metadata), (second_s, _) = trainer.requests
    # The server counts from when the call arrives, by a clock of its own.
    assert 0 < first_s < 60 < second_s
    assert trace_id in metadata["traceparent"]


def test_a_change_carries_a_request_id_so_that_a_retry_does_not_repeat_it(fake_trainer):
    request = trainer_pb2.StartTrainingRequest(job_id="mine")
    with serving(fake_trainer) as address, Client({"trainer": address}) as client:
        client.trainer.StartTraining(request)
        client.trainer.StartTraining(request)
        client.trainer.StartTraining(trainer_pb2.StartTrainingRequest(request_id="own"))

    first, second, own = fake_trainer.requests
    assert len(first.request_id) == 26
    assert first.request_id != second.request_id
    assert (first.job_id, own.request_id) == ("mine", "own")
    # What the caller holds stays as it was.
    assert request.request_id == ""


def test_health_is_false_where_nothing_listens():
    with Client({"registry": "127.0.0.1:1"}) as client:
        assert not client.is_healthy("registry", timeout_s=1)
