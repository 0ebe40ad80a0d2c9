"""The link against a trainer that is away, whose database is away, or that dismisses the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from neuroweaver.mesh.wire.errors import Error, FailedPrecondition, Internal, ResourceExhausted, Unavailable
from neuroweaver.mesh.wire.status import to_status
from neuroweaver.trainer.worker.process import link as link_module
from neuroweaver.trainer.worker.process.link import Link
from neuroweaver.v1 import trainer_pb2 as pb
from neuroweaver.v1 import worker_pb2, worker_pb2_grpc


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
    monkeypatch.setattr(link_module, "RECONNECT_S", 0.01)
    monkeypatch.setattr(link_module, "BEAT_S", 0.01)


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


def report(link: Link, *steps: int) -> None:
    for step in steps:
        link.event(pb.TrainingEvent(progress=pb.Progress(step=step)))


def test_reports_are_held_until_the_trainer_can_store_them_again():
    trainer = ScriptedTrainer(
        Unavailable("the database cannot be reached"),
        FailedPrecondition("DATABASE_READ_ONLY", "the database is read-only"),
        ResourceExhausted("the server's disk is full"),
        Internal("trace"),
    )
    with serving(trainer) as (port, _):
        link = Link(f"127.0.0.1:{port}", "job", 1)
        report(link, *range(1, 51))
        assert link.close(timeout_s=60)

    assert trainer.steps == list(range(1, 51))
    assert not link.must_stop.is_set()
    assert trainer.streams >= 5


def test_reports_are_held_while_the_trainer_itself_is_away():
    first, second = ScriptedTrainer(), ScriptedTrainer()
    with serving(first) as (port, stop):
        link = Link(f"127.0.0.1:{port}", "job", 1)
        report(link, 1)
        with link._changed:
            assert link._changed.wait_for(lambda: not link._waiting, 60)
        stop()
        report(link, 2, 3)
    with serving(second, port):
        assert link.close(timeout_s=60)

    assert second.steps == [2, 3]
    assert not link.must_stop.is_set()


def test_a_worker_that_lost_its_lease_is_dismissed():
    trainer = ScriptedTrainer(FailedPrecondition("LEASE_LOST", "held by another"))
    with serving(trainer) as (port, _):
        link = Link(f"127.0.0.1:{port}", "job", 1)
        assert link.must_stop.wait(60)
        report(link, 1)
        assert not link.close(timeout_s=60)
