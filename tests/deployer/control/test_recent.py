"""What is kept of measurements, against the same read anew from the database."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from datetime import timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from deployer.control.test_rollouts import Clock
from deployer.rpc.test_performance import of, report
from deployer.worlds import KEY, served
from neuroweaver.deployer.control.housekeeping import chores
from neuroweaver.deployer.control.recent import Memory
from neuroweaver.deployer.domain.backend import Key, Measured
from neuroweaver.deployer.domain.metrics.counts import Sample
from neuroweaver.deployer.domain.metrics.measurement import Tally
from neuroweaver.deployer.storage.reader import Reader
from neuroweaver.deployer.storage.writer import by_itself
from neuroweaver.v1 import deployer_pb2 as pb

DAY = pb.DeploymentSpec(thresholds=pb.ModelThresholds(window={"seconds": 86_400}))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many measurements and reports were read from the database."""
    read: Counter[str] = Counter()

    def counted(name: str) -> None:
        real = getattr(Reader, name)

        async def reading(self, *arguments):
            found = await real(self, *arguments)
            read[name.split("_", maxsplit=1)[0]] += len(found)
            return found

        monkeypatch.setattr(Reader, name, reading)

    for name in ("tallies_after", "samples", "samples_after"):
        counted(name)
    return read


def measured(requests: int, errors: int = 0) -> Measured:
    return Measured(1, requests=requests, errors=errors, latency_ms={50.0: requests, math.inf: requests})


async def fill(mesh, count: int, every_s: float) -> None:
    """A past with `count` measurements and as many reports, up to now."""
    now = mesh.store.clock()
    times = [now - timedelta(seconds=every_s * (count - number)) for number in range(count)]

    async def add(deployments):
        await deployments.add_tallies(KEY, [Tally(time, measured(i), 1) for i, time in enumerate(times)])
        await deployments.add_samples(KEY, "router", [Sample(time, "", 1, accuracy=0.9) for time in times])

    await mesh.store.transact(by_itself(KEY), add)


async def kept(mesh, memory: Memory):
    async with mesh.store.read("default") as deployments:
        deployment = await deployments.deployment(KEY)
        recent = await memory.caught_up(deployments, deployment, mesh.store.clock())
    memory.keep(KEY, recent)
    return recent


async def test_a_look_reads_only_what_came_since_the_last_one(lone, rows):
    await served(lone, DAY)
    clock = Clock(lone)
    await fill(lone, 2000, every_s=40)
    memory = Memory()
    assert (await kept(lone, memory)).counts(clock._now)[1].accuracy.weight == 2000
    assert (rows["tallies"], rows["samples"]) == (2000, 2000)
    for _ in range(5):
        rows.clear()
        clock.advance(10)
        await fill(lone, 1, every_s=1)
        await kept(lone, memory)
        assert (rows["tallies"], rows["samples"]) == (1, 1)
    rows.clear()
    await kept(lone, memory)
    assert rows.total() == 0


async def test_the_loop_and_reports_read_a_window_of_a_day_once(lone, rows):
    await served(lone, DAY)
    await fill(lone, 500, every_s=100)
    await lone.reconciler.look(KEY)
    await report(lone, pb.PerformanceSample(accuracy=0.9))
    rows.clear()
    for _ in range(5):
        answer = await report(lone, pb.PerformanceSample(accuracy=0.9))
        await lone.reconciler.look(KEY)
    assert of(answer, pb.THRESHOLD_KIND_ACCURACY).requests == 506
    # Each report is read by the loop, in the transaction of its call and before that of the next one.
    assert rows["samples"] <= 20
    assert rows["tallies"] <= 15


async def test_what_is_kept_is_what_would_be_read_anew(lone):
    await served(lone)
    clock, memory = Clock(lone), Memory()
    for number in range(1, 80):
        clock.advance(10)
        samples = [Sample(clock._now, "", number, accuracy=number / 100, latency_ms=5.0 * number)]
        restarted = number // 30  # a counter that falls: what was counted meanwhile cannot be told

        async def add(deployments, number=number, restarted=restarted, samples=samples):
            counted = measured(10 * number - 290 * restarted, number - 29 * restarted)
            await deployments.add_tallies(KEY, [Tally(clock._now, counted, 1)])
            await deployments.add_samples(KEY, "router", samples)

        await lone.store.transact(by_itself(KEY), add)
        known, anew = await kept(lone, memory), await kept(lone, Memory())
        assert known.proofs[1].last == anew.proofs[1].last
        found, expected = (each.counts(clock._now)[1] for each in (known, anew))
        assert found.accuracy.weight == expected.accuracy.weight
        assert found.accuracy.total == pytest.approx(expected.accuracy.total)
        # The window begins within a bucket, so the oldest difference can be in one and not in the other.
        assert found.errors.weight == pytest.approx(expected.errors.weight, abs=10)


async def test_what_a_failed_transaction_wrote_is_not_kept(lone):
    await served(lone)
    clock, memory = Clock(lone), Memory()

    async def fail(deployments):
        await deployments.add_samples(KEY, "router", [Sample(clock._now, "", 7, accuracy=0.1)])
        seen = await memory.caught_up(deployments, await deployments.deployment(KEY), clock._now)
        assert seen.counts(clock._now)[1].accuracy.weight == 7
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await lone.store.transact(by_itself(KEY), fail)
    assert 1 not in (await kept(lone, memory)).counts(clock._now)


async def test_another_window_is_counted_anew(lone, rows):
    await served(lone, DAY)
    Clock(lone)
    await fill(lone, 100, every_s=100)
    await lone.reconciler.look(KEY)
    request = pb.SetThresholdsRequest(
        model_id="advisor", thresholds=pb.ModelThresholds(window={"seconds": 1000}, min_requests=1)
    )
    answer = await lone.deployer.SetThresholds(request)
    assert 9 <= of(answer, pb.THRESHOLD_KIND_ACCURACY).requests <= 10
    rows.clear()
    await lone.reconciler.look(KEY)
    assert rows["samples"] == 10


async def test_reports_count_when_the_numbering_began_anew(lone):
    await served(lone)
    clock, memory = Clock(lone), Memory()
    await fill(lone, 5, every_s=1)
    assert (await kept(lone, memory)).cursor == 5
    await chores(lone.store.database, clock._now + timedelta(days=2))["measurements"]()
    await fill(lone, 2, every_s=1)
    recent = await kept(lone, memory)
    assert (recent.cursor, recent.counts(clock._now)[1].accuracy.weight) == (2, 2)


async def test_a_report_from_a_clock_that_is_ahead_counts_at_once_and_displaces_nothing(lone):
    await served(lone, pb.DeploymentSpec(thresholds=pb.ModelThresholds(window={"seconds": 10})))
    await report(lone, pb.PerformanceSample(accuracy=0.5, requests=10))
    ahead = Timestamp()
    ahead.FromDatetime(lone.store.clock() + timedelta(minutes=4))
    answer = await report(lone, pb.PerformanceSample(accuracy=0.5, requests=20, time=ahead))
    assert of(answer, pb.THRESHOLD_KIND_ACCURACY).requests == 30


async def test_what_a_clock_measured_that_ran_ahead_does_not_hide_what_comes_after(lone):
    await served(lone)
    clock, memory = Clock(lone), Memory()
    years = timedelta(days=3653).total_seconds()
    clock.advance(years)
    await fill(lone, 5, every_s=1)
    assert (await kept(lone, memory)).counts(clock._now)[1].requests
    clock.advance(-years)
    await chores(lone.store.database, clock._now)["measurements"]()
    await fill(lone, 3, every_s=1)
    recent = await kept(lone, memory)
    assert recent.counts(clock._now)[1].accuracy.weight == 3
    assert recent.tallied <= clock._now


async def test_only_the_deployments_looked_at_last_are_kept(lone, rows):
    await served(lone)
    memory = Memory(most=1)
    await fill(lone, 3, every_s=1)
    recent = await kept(lone, memory)
    memory.keep(Key("default", "other", "default"), recent)
    rows.clear()
    await kept(lone, memory)
    assert rows["samples"] == 3


async def test_a_report_that_a_faster_one_with_its_id_overtook_is_counted_once(lone, monkeypatch):
    """Its first attempt does everything and is rolled back; its second one finds the answer given."""
    await served(lone)
    overtaken = pb.PerformanceSample(accuracy=0.9, requests=100)
    real, is_first = lone.store.database.transact, True

    async def transact(work, **options):
        nonlocal is_first
        if is_first:
            is_first = False

            async def fail(connection):
                await work(connection)
                raise LookupError

            with contextlib.suppress(LookupError):
                await real(fail, **options)
            await report(lone, pb.PerformanceSample(accuracy=0.9, requests=10))
            await report(lone, overtaken, request_id="r")
        return await real(work, **options)

    monkeypatch.setattr(lone.store.database, "transact", transact)
    await report(lone, overtaken, request_id="r")
    answer = await report(lone, pb.PerformanceSample(accuracy=0.9, requests=1))
    assert of(answer, pb.THRESHOLD_KIND_ACCURACY).requests == 111
