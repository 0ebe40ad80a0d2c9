"""Results from events to watches, through real servers over both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from prometheus_client import REGISTRY, CollectorRegistry

from databases import prepare
from experiment.figures import experiment, guardrail, lower, normal, snapshot
from experiment.serving import Said, World, create, metric, spec, start
from neuroweaver.experiment.analysis import automation
from neuroweaver.experiment.analysis.study import study
from neuroweaver.experiment.conclusion.registry import Releases
from neuroweaver.experiment.control.controller import ExperimentController
from neuroweaver.experiment.control.evaluators import Evaluators
from neuroweaver.experiment.domain.snapshot import Snapshot
from neuroweaver.experiment.intake import snapshots
from neuroweaver.experiment.intake.committer import Committer
from neuroweaver.experiment.intake.projection import Projections
from neuroweaver.experiment.results.cache import ResultsCache
from neuroweaver.experiment.results.live import conflated
from neuroweaver.experiment.rpc import server
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers.heartbeats import Heartbeats
from neuroweaver.mesh.server.serve import Service, running
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.settings import Settings
from neuroweaver.v1 import experiment_pb2 as pb
from neuroweaver.v1.experiment_pb2_grpc import ExperimentServiceStub, add_ExperimentServiceServicer_to_server


@pytest.fixture
async def mesh(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """The Experiment service without a Registry, which nothing here asks for, and with real results."""
    await prepare(database_url, "neuroweaver.experiment")
    database = Database(database_url, schema="experiment")
    store = Store(database)
    projections = Projections()
    cache = ResultsCache(store, projections)
    committer = Committer(database, projections, store.clock, store.topics)
    servicer = server.servicer(store, Evaluators(store), Releases(None), committer, cache)
    served = Service(
        names=[server.SERVICE.full_name],
        add=lambda grpc_server: add_ExperimentServiceServicer_to_server(servicer, grpc_server),
        close=database.close,
    )
    settings = Settings(
        service="experiment", home=tmp_path, port=0, metrics_port=0, database_url=database_url, drain_s=0.0
    )
    async with running(served, settings, registry=CollectorRegistry()) as at, channel(at.address) as client:
        controller = ExperimentController(store, Releases(None), cache)
        yield World(None, ExperimentServiceStub(client), store, Said(), controller, at.address)


async def record(
    mesh: World, values: dict[str, dict[str, Any]], test_id: str = "t", batch: str = ""
) -> pb.RecordEventsResponse:
    """values: by variant and metric, one a unit, each exposed a moment before."""
    now_us = int(mesh.store.clock().timestamp() * 1e6)
    requests = []
    for variant, metrics in values.items():
        count = len(next(iter(metrics.values())))
        units = [f"{variant}{batch}-{index}" for index in range(count)]
        columns = pb.EventColumns(
            event_ids=[f"x-{unit}" for unit in units],
            unit_ids=units,
            event_times_us=[now_us - 2] * count,
            exposures=pb.ExposureColumns(variant_ids=[variant], assigned=[0] * count),
        )
        requests.append(pb.RecordEventsRequest(test_id=test_id, columns=columns))
        for name, column in metrics.items():
            columns = pb.EventColumns(
                event_ids=[f"{name}-{unit}" for unit in units],
                unit_ids=units,
                event_times_us=[now_us - 1] * count,
                metrics=pb.MetricColumns(names=[name], name_indexes=[0] * count, values=column),
            )
            requests.append(pb.RecordEventsRequest(test_id=test_id, columns=columns))
    return await mesh.experiment.RecordEvents(iter(requests))


def scores(units: int = 50, shift: float = 0.0, seed: int = 1) -> dict[str, dict[str, Any]]:
    return {
        "control": {"score": normal(units, 10, seed).tolist()},
        "tuned": {"score": normal(units, 10 + shift, seed + 1).tolist()},
    }


async def analyse(mesh: World, **fields: Any) -> pb.ExperimentResults:
    return await mesh.experiment.AnalyzeExperiment(pb.AnalyzeExperimentRequest(test_id="t", **fields))


async def listed(mesh: World) -> list[pb.ExperimentResults]:
    request = pb.ListResultsRequest(test_id="t", page_size=1000)
    return list((await mesh.experiment.ListResults(request)).results)


@asynccontextmanager
async def watching(mesh: World, since: int = 0) -> AsyncIterator[Any]:
    call = mesh.experiment.WatchResults(pb.WatchResultsRequest(test_id="t", since_sequence=since))
    try:
        yield call
    finally:
        call.cancel()


async def until(call: Any, kind: str) -> pb.ResultsEvent:
    async with asyncio.timeout(120):
        while True:
            event = await call.read()
            if event.WhichOneof("event") == kind:
                return event


async def refused(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    code: grpc.StatusCode = caught.value.code()
    return code


async def test_recorded_events_are_analysed(mesh: World) -> None:
    await create(mesh)
    await start(mesh)
    await record(mesh, scores(shift=1.0))
    results = await analyse(mesh)
    assert [each.units for each in results.variants] == [50, 50]
    assert results.metrics[0].effects[0].absolute == pytest.approx(1.0)
    assert results.state == pb.EXPERIMENT_STATE_RUNNING
    assert results.verdict.decision == pb.DECISION_INCONCLUSIVE
    assert results.verdict.gaps[0].blocker == pb.VERDICT_BLOCKER_MINIMUM_SAMPLE
    first = await analyse(mesh, phase=1)
    assert (first.phase, first.metrics[0].effects[0].absolute) == (1, pytest.approx(1.0))


async def test_what_was_recorded_before_the_call_is_in_the_answer(mesh: World) -> None:
    await create(mesh)
    await start(mesh)
    for round_number in range(1, 4):
        await record(mesh, scores(seed=round_number), batch=str(round_number))
        assert (await analyse(mesh)).variants[0].units == 50 * round_number


async def test_results_of_a_past_moment_come_from_the_raw_events(mesh: World) -> None:
    await create(mesh)
    await start(mesh)
    await record(mesh, scores(shift=1.0))
    await asyncio.sleep(0.01)
    then = mesh.store.clock()
    await asyncio.sleep(0.01)
    await record(mesh, scores(shift=9.0, seed=5), batch="later")
    request = pb.AnalyzeExperimentRequest(test_id="t")
    request.as_of.FromDatetime(then)
    past = await mesh.experiment.AnalyzeExperiment(request)
    assert past.variants[0].units == 50
    assert past.metrics[0].effects[0].absolute == pytest.approx(1.0)
    assert past.sequence == 0
    assert past.as_of == request.as_of
    request.as_of.FromDatetime(then - timedelta(days=1))
    before = await mesh.experiment.AnalyzeExperiment(request)
    assert before.state == pb.EXPERIMENT_STATE_CREATED
    assert not before.variants[0].units


async def test_a_split_that_was_found_wrong_stays_so_in_a_phase_a_replay_and_a_recomputation(
    mesh: World,
) -> None:
    await create(mesh)
    await start(mesh)
    await record(mesh, {"control": scores(120)["control"], "tuned": scores(20)["tuned"]})
    before = mesh.store.clock()
    await asyncio.sleep(0.01)
    assert (await analyse(mesh)).sample_ratio.is_mismatch  # and is not stored yet
    await asyncio.sleep(0.01)
    # More of the other make the split look right again.
    await record(mesh, {"tuned": scores(100)["tuned"]}, batch="later")
    now = mesh.store.clock()
    await mesh.controller.look()
    for clock in (pb.REPLAY_CLOCK_RECEIVED, pb.REPLAY_CLOCK_HAPPENED):
        request = pb.AnalyzeExperimentRequest(test_id="t", as_of_clock=clock)
        request.as_of.FromDatetime(now)
        past = await mesh.experiment.AnalyzeExperiment(request)
        assert [each.units for each in past.variants] == [120, 120]
        assert past.sample_ratio.is_mismatch
        assert past.sample_ratio.fire_time.ToDatetime(now.tzinfo) > before
        assert pb.VERDICT_BLOCKER_SAMPLE_RATIO in {gap.blocker for gap in past.verdict.gaps}
    assert (await analyse(mesh, phase=1)).sample_ratio.is_mismatch
    found = await mesh.experiment.RecomputeResults(pb.RecomputeResultsRequest(test_id="t"))
    assert found.results.sample_ratio.is_mismatch


async def test_a_replay_has_what_was_rejected_from_the_results_that_were_stored(mesh: World) -> None:
    await create(mesh)
    await start(mesh)
    await record(mesh, scores())
    first = mesh.store.clock()
    await asyncio.sleep(0.01)
    now_us = int(mesh.store.clock().timestamp() * 1e6)
    columns = pb.EventColumns(
        event_ids=["x-tuned-0", "early"],
        unit_ids=["another", "late-comer"],
        event_times_us=[now_us, now_us - 10**12],
        exposures=pb.ExposureColumns(variant_ids=["tuned"], assigned=[0, 0]),
    )
    await mesh.experiment.RecordEvents(iter([pb.RecordEventsRequest(test_id="t", columns=columns)]))
    await mesh.controller.look()
    reasons = {pb.EVENT_REJECTION_ID_OF_ANOTHER_UNIT, pb.EVENT_REJECTION_BEFORE_START}
    assert {each.reason for each in (await analyse(mesh)).events.rejected} == reasons
    request = pb.AnalyzeExperimentRequest(test_id="t")
    request.as_of.FromDatetime(mesh.store.clock())
    past = await mesh.experiment.AnalyzeExperiment(request)
    assert {each.reason for each in past.events.rejected} == reasons
    told = {each.reason: each.message for each in past.notices}
    assert {"EVENT_ID_REUSED", "EXPOSURES_REJECTED", "REPLAY_OF_STORED"} <= told.keys()
    assert "last stored" in told["REPLAY_OF_STORED"]
    # Before any results were stored.
    request.as_of.FromDatetime(first)
    past = await mesh.experiment.AnalyzeExperiment(request)
    assert not past.events.rejected
    assert "not known" in next(each.message for each in past.notices if each.reason == "REPLAY_OF_STORED")


async def test_an_experiment_or_a_phase_that_is_not_there_is_refused(mesh: World) -> None:
    assert await refused(analyse(mesh)) == grpc.StatusCode.NOT_FOUND
    assert await refused(listed(mesh)) == grpc.StatusCode.NOT_FOUND
    await create(mesh)
    assert await refused(analyse(mesh, phase=1)) == grpc.StatusCode.OUT_OF_RANGE
    async with watching(mesh, since=99) as call:
        assert await refused(call.read()) == grpc.StatusCode.OUT_OF_RANGE


async def test_a_plan_comes_over_the_wire(mesh: World) -> None:
    request = pb.PlanExperimentRequest(
        mean=pb.MeanBaseline(mean=10, std_dev=1),
        effect=pb.EffectSize(absolute=0.5),
        method=pb.INFERENCE_METHOD_FIXED_HORIZON,
    )
    assert list((await mesh.experiment.PlanExperiment(request)).units_per_arm) == [64, 64]
    request.weights.extend([0.5, 0.4])
    assert await refused(mesh.experiment.PlanExperiment(request)) == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_watch_replays_what_happened_and_then_tells_what_moves(mesh: World) -> None:
    await create(mesh)
    await start(mesh)
    async with watching(mesh) as call:
        first = await call.read()
        assert first.state_changed.to_state == pb.EXPERIMENT_STATE_RUNNING
        assert (await call.read()).HasField("phase_opened")
        assert (await until(call, "results")).results.variants[0].units == 0
        await record(mesh, scores())
        moved = await until(call, "results")
        assert moved.results.variants[0].units == 50
        assert moved.results.sequence == moved.sequence
    # What happened meanwhile is not lost to a watch that resumes.
    await mesh.experiment.PauseExperiment(pb.PauseExperimentRequest(test_id="t"))
    async with watching(mesh, since=moved.sequence) as call:
        paused = await call.read()
        assert paused.state_changed.to_state == pb.EXPERIMENT_STATE_PAUSED
        assert paused.sequence > moved.sequence


async def test_a_watch_ends_with_the_conclusion(mesh: World) -> None:
    await create(mesh)
    await start(mesh)
    async with watching(mesh) as call:
        await until(call, "results")
        request = pb.ConcludeExperimentRequest(
            test_id="t", winner_variant_id="control", force=True, reason="enough"
        )
        await mesh.experiment.ConcludeExperiment(request)
        last = None
        async with asyncio.timeout(120):
            async for event in call:
                last = event
        assert last is not None
        assert last.state_changed.to_state == pb.EXPERIMENT_STATE_CONCLUDED
        assert await call.code() == grpc.StatusCode.OK
    async with watching(mesh, since=last.sequence) as call:
        assert await call.read() == grpc.aio.EOF


async def test_an_idle_watch_hears_a_heartbeat(mesh: World) -> None:
    mesh.store.topics.heartbeats = Heartbeats(0.2)
    await create(mesh)
    await start(mesh)
    async with watching(mesh) as call:
        results = await until(call, "results")
        beat = await until(call, "heartbeat")
        assert beat.sequence == beat.heartbeat.sequence == results.sequence


async def test_however_many_ask_there_is_one_computation(mesh: World) -> None:
    await create(mesh)
    await start(mesh)
    loads = 0

    async def load(*key: Any) -> Snapshot:
        nonlocal loads
        loads += 1
        return await snapshots.load(*key)

    cache = ResultsCache(mesh.store, Projections(), load=load)
    found = await asyncio.gather(*(cache.current("default", "t") for _ in range(1000)))
    assert loads == 1
    assert len(set(map(id, found))) == 1
    await asyncio.gather(*(cache.current("default", "t") for _ in range(1000)))
    assert loads == 1  # nothing came in


async def test_who_gives_up_waiting_leaves_the_others_their_answer(mesh: World) -> None:
    await create(mesh)
    cache = ResultsCache(mesh.store, Projections())
    impatient = asyncio.create_task(cache.current("default", "t"))
    patient = asyncio.create_task(cache.current("default", "t"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).test_id == "t"


async def test_two_hundred_watchers_hear_of_the_same_results(mesh: World) -> None:
    await create(mesh)
    await start(mesh)
    calls = [mesh.experiment.WatchResults(pb.WatchResultsRequest(test_id="t")) for _ in range(200)]
    before = await asyncio.gather(*(until(call, "results") for call in calls))
    assert len({event.sequence for event in before}) == 1
    await record(mesh, scores())
    after = await asyncio.gather(*(until(call, "results") for call in calls))
    assert {event.results.variants[0].units for event in after} == {50}
    for call in calls:
        call.cancel()


async def test_results_that_say_the_same_are_kept_once_and_fresh_ones_are_thinned(mesh: World) -> None:
    await create(mesh)
    await start(mesh)
    real = mesh.store.clock
    cache = ResultsCache(mesh.store, Projections(), period_s=0.0)
    for round_number in range(5):
        mesh.store.clock = lambda seconds=round_number: real() + timedelta(seconds=20 * seconds)
        await record(mesh, scores(seed=round_number), batch=str(round_number))
        await cache.keep("default", "t")
        await cache.keep("default", "t")
    # At 0, 20, 40, 60 and 80 s: what stood for less than a minute is gone, but for the last.
    assert [each.variants[0].units for each in await listed(mesh)] == [50, 200, 250]


def test_of_pending_results_the_last_is_told_and_everything_else() -> None:
    def result(sequence: int) -> pb.ResultsEvent:
        return pb.ResultsEvent(sequence=sequence, results=pb.ExperimentResults())

    events = [
        result(1),
        pb.ResultsEvent(sequence=2, state_changed=pb.ExperimentStateChanged()),
        result(3),
        pb.ResultsEvent(sequence=4, phase_opened=pb.AnalysisPhase()),
        result(5),
    ]
    assert [each.sequence for each in conflated(events)] == [2, 4, 5]


COST = {"metrics": [metric(), lower("cost")], "guardrails": [guardrail("cost", absolute=0.5)]}


def harmful(units: int = 200) -> dict[str, dict[str, Any]]:
    values = scores(units)
    values["control"]["cost"] = normal(units, 10, 8).tolist()
    values["tuned"]["cost"] = normal(units, 13, 9).tolist()
    return values


def fresh_controller(mesh: World) -> ExperimentController:
    """One that has not looked at the data just now."""
    return ExperimentController(mesh.store, Releases(None), ResultsCache(mesh.store, Projections()))


async def test_a_breached_guardrail_stops_the_experiment(mesh: World) -> None:
    await create(mesh, made=spec(**COST))
    await start(mesh)
    await record(mesh, harmful())
    await mesh.controller.look()
    found = await mesh.experiment.GetExperiment(pb.GetExperimentRequest(test_id="t"))
    assert found.state == pb.EXPERIMENT_STATE_STOPPED
    assert found.stop_cause == pb.STOP_CAUSE_GUARDRAIL
    assert "cost" in found.state_reason
    async with watching(mesh) as call:
        breach = (await until(call, "guardrail_breached")).guardrail_breached
        assert (breach.variant_id, breach.is_stopping) == ("tuned", True)
        assert breach.interval.lower > 0.5
        assert (await until(call, "state_changed")).state_changed.to_state == pb.EXPERIMENT_STATE_STOPPED


async def test_harm_within_the_margin_stops_nothing(mesh: World) -> None:
    await create(mesh, made=spec(**COST))
    await start(mesh)
    values = harmful()
    values["tuned"]["cost"] = normal(200, 10.6, 9).tolist()
    await record(mesh, values)
    await mesh.controller.look()
    found = await mesh.experiment.GetExperiment(pb.GetExperimentRequest(test_id="t"))
    assert found.state == pb.EXPERIMENT_STATE_RUNNING


async def test_a_breach_that_does_not_stop_is_told_once_and_holds_the_ramp_up(mesh: World) -> None:
    ramp = [pb.RampStep(coverage=0.1, hold=Duration(seconds=60)), pb.RampStep(coverage=1.0)]
    await create(mesh, made=spec(**COST, stop_on_guardrail_breach=False, ramp=ramp))
    await start(mesh)
    await record(mesh, harmful())
    real = mesh.store.clock
    mesh.store.clock = lambda: real() + timedelta(minutes=5)
    for _ in range(2):
        await fresh_controller(mesh).look()
    found = await mesh.experiment.GetExperiment(pb.GetExperimentRequest(test_id="t"))
    assert (found.state, found.ramp_step) == (pb.EXPERIMENT_STATE_RUNNING, 1)
    async with mesh.store.read("default") as experiments:
        events = await experiments.result_events("t")
    assert sum(event.HasField("guardrail_breached") for event in events) == 1


async def test_a_ramp_up_that_nothing_holds_goes_on(mesh: World) -> None:
    ramp = [pb.RampStep(coverage=0.1, hold=Duration(seconds=60)), pb.RampStep(coverage=1.0)]
    await create(mesh, made=spec(ramp=ramp))
    await start(mesh)
    real = mesh.store.clock
    mesh.store.clock = lambda: real() + timedelta(minutes=5)
    await mesh.controller.look()
    found = await mesh.experiment.GetExperiment(pb.GetExperimentRequest(test_id="t"))
    assert found.ramp_step == 2


async def test_weights_follow_the_outcomes(mesh: World) -> None:
    thompson = pb.ThompsonAllocation(update_interval=Duration(seconds=300), min_weight=0.1)
    await create(mesh, made=spec(thompson=thompson))
    await start(mesh)
    await record(mesh, scores(200, shift=1.0))
    await mesh.controller.look()
    found = await mesh.experiment.GetExperiment(pb.GetExperimentRequest(test_id="t"))
    assert len(found.phases) == 1  # its time has not come
    real = mesh.store.clock
    mesh.store.clock = lambda: real() + timedelta(minutes=6)
    await fresh_controller(mesh).look()
    found = await mesh.experiment.GetExperiment(pb.GetExperimentRequest(test_id="t"))
    weights = {each.variant_id: each.weight for each in found.phases[-1].allocations}
    assert weights == {"control": pytest.approx(0.1), "tuned": pytest.approx(0.9)}
    assert found.phases[-1].reason == automation.REASON
    assert "ADAPTIVE_ALLOCATION" in {each.reason for each in (await analyse(mesh)).notices}


async def test_the_last_results_are_kept_when_an_experiment_stops(mesh: World) -> None:
    await create(mesh)
    await start(mesh)
    await mesh.controller.look()
    await record(mesh, scores())
    await mesh.experiment.StopExperiment(pb.StopExperimentRequest(test_id="t"))
    await mesh.controller.look()
    last = (await listed(mesh))[-1]
    assert last.state == pb.EXPERIMENT_STATE_STOPPED
    assert last.variants[0].units == 50


async def test_prometheus_reads_of_a_running_experiment_whether_its_data_decide(mesh: World) -> None:
    def told() -> float | None:
        labels = {"project": "default", "experiment": "t", "model_id": ""}
        return REGISTRY.get_sample_value("neuroweaver_experiment_significant", labels)

    await create(mesh, made=spec(min_units_per_variant=10))
    await start(mesh)
    await mesh.controller.look()
    assert told() == 0
    await record(mesh, scores(400, shift=3.0))
    await fresh_controller(mesh).look()
    assert told() == 1
    await mesh.experiment.StopExperiment(pb.StopExperimentRequest(test_id="t"))
    await mesh.controller.look()
    assert told() is None


def test_outcomes_of_early_phases_do_not_pull_the_weights_with_their_time() -> None:
    phases = [{"control": 0.1, "tuned": 0.9}, {"control": 0.9, "tuned": 0.1}]
    found = snapshot(
        {"control": {"score": normal(200, 0, 1)}, "tuned": {"score": normal(1800, 1, 2)}},
        {"control": {"score": normal(1800, 10, 3)}, "tuned": {"score": normal(200, 11, 4)}},
    )
    made = experiment(phases=phases, thompson=pb.ThompsonAllocation(min_weight=0.05))
    weights = automation.following(study(made, found))
    assert weights == {"control": pytest.approx(0.05), "tuned": pytest.approx(0.95)}
    few = snapshot({"control": {"score": normal(99, 0, 1)}, "tuned": {"score": normal(99, 1, 2)}})
    assert automation.following(study(experiment(thompson=pb.ThompsonAllocation()), few)) is None
