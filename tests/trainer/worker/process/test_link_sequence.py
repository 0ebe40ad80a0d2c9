"""The link against a trainer that is away, whose database is away, or that dismisses the worker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from neuroweaver.mesh.wire.errors import Error, FailedPrecondition, Internal, ResourceExhausted, Unavailable
from neuroweaver.mesh.wire.status import to_status
from neuroweaver.trainer.worker.process import link
from neuroweaver.trainer.worker.process.link import Link
from neuroweaver.v1 import trainer_pb2 as pb
from neuroweaver.v1 import worker_pb2, worker_pb2_grpc

PATIENCE_S = 60


class ScriptedTrainer(worker_pb2_grpc.WorkerServiceServicer):
    """Refuses one report stream after the other by a script, then stores what comes."""

    def __init__(self, *refusals: Error) -> None:
        self.refusals = list(refusals)
        self.steps: list[int] = []
        self.streams = 0

    def Report(self, request_iterator: Any, context: Any) -> Iterator[worker_pb2.ReportResponse]:  # noqa: N802
        self.streams += 1
        for request in request_iterator:
            if self.refusals:
                context.abort_with_status(to_status(self.refusals.pop(0)))
            if request.number:
                self.steps.append(request.event.progress.step)
            yield worker_pb2.ReportResponse(acknowledged=request.number)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "RECONNECT_S", 0.01)
    monkeypatch.setattr(link, "BEAT_S", 0.01)


@contextmanager
def serving(trainer: ScriptedTrainer, port: int = 0) -> Iterator[tuple[int, Callable[[], None]]]:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(trainer, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()

        def stop() -> None:
            server.stop(None).wait()

        try:
            yield port, stop
        finally:
            stop()


def report(sender: Link, *steps: int) -> None:
    for step in steps:
        sender.event(pb.TrainingEvent(progress=pb.Progress(step=step)))


def test_reports_are_held_until_the_trainer_can_store_them_again():
    trainer = ScriptedTrainer(
        Unavailable("the database cannot be reached"),
        FailedPrecondition("DATABASE_READ_ONLY", "the database is read-only"),
        ResourceExhausted("the server's disk is full"),
        Internal("trace"),
    )
    with serving(trainer) as (port, _):
        sender = Link(f"127.0.0.1:{port}", "job", 1, "secret")
        report(sender, *range(1, 51))
        assert sender.close(timeout_s=60)

    assert trainer.steps == list(range(1, 51))
    assert not sender.must_stop.is_set()
    assert trainer.streams >= 5


def test_reports_are_held_while_the_trainer_itself_is_away():
    first, second = ScriptedTrainer(), ScriptedTrainer()
    with serving(first) as (port, stop):
        sender = Link(f"127.0.0.1:{port}", "job", 1, "secret")
        report(sender, 1)
        with sender._changed:
            assert sender._changed.wait_for(lambda: not sender._waiting, 60)
        stop()
        report(sender, 2, 3)
    with serving(second, port):
        assert sender.close(timeout_s=60)

    assert second.steps == [2, 3]
    assert not sender.must_stop.is_set()


def test_a_worker_that_lost_its_lease_is_dismissed():
    trainer = ScriptedTrainer(FailedPrecondition("LEASE_LOST", "held by another"))
    with serving(trainer) as (port, _):
        sender = Link(f"127.0.0.1:{port}", "job", 1, "secret")
        assert sender.must_stop.wait(60)
        report(sender, 1)
        assert not sender.close(timeout_s=60)


class Listener(worker_pb2_grpc.WorkerServiceServicer):
    """Takes every report, and notes those that it had not seen."""

    def __init__(self) -> None:
        self.seen: list[worker_pb2.ReportRequest] = []
        self.metadata: list[tuple[str, str]] = []

    def Report(self, request_iterator, context):  # noqa: N802
        self.metadata = list(context.invocation_metadata())
        for request in request_iterator:
            if request.number > len(self.seen):
                self.seen.append(request)
            yield worker_pb2.ReportResponse(acknowledged=len(self.seen))


@pytest.fixture
def listening(tmp_path):
    """A function that opens the socket of a trainer."""
    servers = []

    def listen(listener):
        server = grpc.server(ThreadPoolExecutor(4))
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(listener, server)
        server.add_insecure_port(f"unix:{tmp_path / 's'}")
        server.start()
        servers.append(server)
        return listener

    yield listen
    for server in servers:
        server.stop(0).wait()


def step(number: int) -> pb.TrainingEvent:
    return pb.TrainingEvent(progress=pb.Progress(step=number))


def started(number: int) -> pb.TrainingEvent:
    return pb.TrainingEvent(stage_started=pb.StageStarted(stage=number))


def test_what_is_kept_while_the_trainer_is_away_has_no_gaps(tmp_path, listening, monkeypatch):
    monkeypatch.setattr(link, "MAX_WAITING", 4)
    sender = Link(f"unix:{tmp_path / 's'}", "job", 1, "secret")
    for event in (step(1), started(1), step(2), step(3), step(4), started(2)):
        sender.event(event)

    listener = listening(Listener())
    assert sender.close(PATIENCE_S)

    assert [request.number for request in listener.seen] == [1, 2, 3]
    assert [request.event.WhichOneof("event") for request in listener.seen] == [
        "stage_started",
        "progress",
        "stage_started",
    ]
    assert ("authorization", "Bearer secret") in listener.metadata


def test_what_was_sent_keeps_its_number_when_others_are_dropped(tmp_path, listening, monkeypatch):
    monkeypatch.setattr(link, "MAX_WAITING", 3)
    arrived, go_on = threading.Event(), threading.Event()

    class Slow(Listener):
        def Report(self, request_iterator, context):  # noqa: N802
            for answer in super().Report(request_iterator, context):
                if self.seen and not go_on.is_set():
                    arrived.set()
                    go_on.wait(PATIENCE_S)
                yield answer

    listener = listening(Slow())
    sender = Link(f"unix:{tmp_path / 's'}", "job", 1, "secret")
    sender.event(step(1))
    assert arrived.wait(PATIENCE_S)
    for event in (step(2), started(1), step(3), started(2)):
        sender.event(event)
    go_on.set()
    assert sender.close(PATIENCE_S)

    numbers = [request.number for request in listener.seen]
    assert numbers == list(range(1, len(numbers) + 1))
    kept = [
        request.event.stage_started.stage
        for request in listener.seen
        if request.event.HasField("stage_started")
    ]
    assert kept == [1, 2]
    assert listener.seen[0].event.progress.step == 1
