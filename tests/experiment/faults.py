"""An Experiment service that is killed while events come in, and what must be true once it is back."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from experiment.serving import metric, spec
from neuroweaver.local.processes import Fleet, free_ports
from neuroweaver.mesh.wire.channel import sync_channel
from neuroweaver.v1 import experiment_pb2 as pb
from neuroweaver.v1.experiment_pb2_grpc import ExperimentServiceStub

SIZE = 50
WRITERS = 4
UNITS = 97


@dataclass
class Feed:
    """What was sent, and what was acknowledged. values: of each unit in any accepted or lost batch."""

    acknowledged: set[int] = field(default_factory=set)
    sent: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    next: int = 0

    def take(self) -> int:
        with self.lock:
            self.next += 1
            self.sent.add(self.next)
            return self.next


def batch(number: int, now_us: int) -> pb.RecordEventsRequest:
    """SIZE samples of whole numbers, whose sums are exact; each first batch of a unit exposes it."""
    drawn = random.Random(number)
    units = [f"u{drawn.randrange(UNITS)}" for _ in range(SIZE)]
    return pb.RecordEventsRequest(
        test_id="t",
        columns=pb.EventColumns(
            event_ids=[f"{number}-{index}" for index in range(SIZE)],
            unit_ids=units,
            event_times_us=[now_us + 1] * SIZE,
            metrics=pb.MetricColumns(
                names=["score"], name_indexes=[0] * SIZE, values=[drawn.randrange(100) for _ in range(SIZE)]
            ),
        ),
    )


def exposures(now_us: int) -> pb.RecordEventsRequest:
    return pb.RecordEventsRequest(
        test_id="t",
        columns=pb.EventColumns(
            event_ids=[f"e{unit}" for unit in range(UNITS)],
            unit_ids=[f"u{unit}" for unit in range(UNITS)],
            event_times_us=[now_us] * UNITS,
            exposures=pb.ExposureColumns(
                variant_ids=["control", "tuned"], assigned=[unit % 2 for unit in range(UNITS)]
            ),
        ),
    )


class Service:
    """One Experiment service as a process, over one database that outlives it."""

    def __init__(self, home: Path, database_url: str) -> None:
        port, metrics_port = free_ports(2)
        self._environ = os.environ | {
            "NEUROWEAVER_HOME": str(home),
            "NEUROWEAVER_EXPERIMENT_PORT": str(port),
            "NEUROWEAVER_EXPERIMENT_METRICS_PORT": str(metrics_port),
            "NEUROWEAVER_DATABASE_URL": database_url if database_url.startswith("postgresql") else "",
        }

    @contextmanager
    def running(self) -> Iterator[tuple[ExperimentServiceStub, int]]:
        """Its stub and its process id. It may have been killed when the block ends."""
        with Fleet(self._environ, ["experiment"]) as fleet:
            fleet.start()
            fleet.wait_until_healthy()
            with sync_channel(fleet.places[0].address) as channel:
                yield ExperimentServiceStub(channel), fleet.pid("experiment")


def begin(service: Service) -> int:
    """Makes and starts the experiment. Gives the time that its events have."""
    with service.running() as (stub, _):
        made = spec(metrics=[metric("score"), metric("count", count=pb.CountMetric(event_name="score"))])
        stub.CreateExperiment(pb.CreateExperimentRequest(test_id="t", spec=made))
        stub.StartExperiment(pb.StartExperimentRequest(test_id="t"))
        now_us = time.time_ns() // 1000
        stub.RecordEvents(iter([exposures(now_us)]))
        return now_us


def kill_while_feeding(service: Service, feed: Feed, now_us: int, after: int, delay_s: float) -> None:
    """Kills the service with SIGKILL some seconds after so many more batches were acknowledged."""
    with service.running() as (stub, pid), ThreadPoolExecutor(WRITERS) as writers:
        enough, is_over = threading.Event(), threading.Event()
        goal = len(feed.acknowledged) + after

        def write() -> None:
            while not is_over.is_set():
                number = feed.take()
                try:
                    stub.RecordEvents(iter([batch(number, now_us)]))
                except grpc.RpcError:
                    return
                with feed.lock:
                    feed.acknowledged.add(number)
                if len(feed.acknowledged) >= goal:
                    enough.set()

        for _ in range(WRITERS):
            writers.submit(write)
        if not enough.wait(60):
            is_over.set()
            raise RuntimeError("too few batches were acknowledged in a minute")
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
        is_over.set()


def check(service: Service, feed: Feed, now_us: int) -> None:
    """Nothing acknowledged is lost, nothing counts twice, and the statistics are those of the events."""
    with service.running() as (stub, _):
        found = stub.RecomputeResults(pb.RecomputeResultsRequest(test_id="t"))
        assert found.is_equal, list(found.differences)
        kept = found.events - UNITS
        assert len(feed.acknowledged) * SIZE <= kept <= len(feed.sent) * SIZE, (found.events, feed)
        assert kept % SIZE == 0
        answer = stub.RecordEvents(batch(number, now_us) for number in sorted(feed.sent))
        assert answer.duplicates == kept, (answer, kept)
        assert answer.accepted == len(feed.sent) * SIZE - kept
        feed.acknowledged |= feed.sent
        results = stub.AnalyzeExperiment(pb.AnalyzeExperimentRequest(test_id="t"))
        assert sums(results) == expected(feed.sent)
        assert stub.RecomputeResults(pb.RecomputeResultsRequest(test_id="t")).is_equal


def sums(results: pb.ExperimentResults) -> dict[str, float]:
    """Of all units, by variant."""
    score = next(each for each in results.metrics if each.metric_id == "score")
    return {each.variant_id: round(each.value * each.units, 6) for each in score.variants}


def expected(sent: Iterable[int]) -> dict[str, float]:
    sums = {"control": 0.0, "tuned": 0.0}
    for number in sent:
        columns = batch(number, 0).columns
        for unit, value in zip(columns.unit_ids, columns.metrics.values, strict=True):
            sums[("control", "tuned")[int(unit[1:]) % 2]] += value
    return sums
