from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abandoning import is_given_up
from experiment.ingesting import NOW, PROJECT, at, exposure, intake, judgement, sample
from experiment.serving import metric, spec
from neuroweaver.experiment.domain.snapshot import Snapshot
from neuroweaver.experiment.intake import raw_events, recompute, retention
from neuroweaver.experiment.intake.events import Batch, batches_of
from neuroweaver.mesh.wire.errors import FailedPrecondition
from neuroweaver.v1 import experiment_pb2 as pb


def many_metrics() -> pb.ExperimentSpec:
    def source(name, aggregation=pb.UNIT_AGGREGATION_SUM):
        return pb.EventSource(event_name=name, aggregation=aggregation)

    def mean(metric_id, event_name, aggregation=pb.UNIT_AGGREGATION_SUM, **fields):
        found = pb.MeanMetric(source=source(event_name, aggregation))
        return pb.ExperimentMetric(metric_id=metric_id, goal=pb.METRIC_GOAL_INCREASE, mean=found, **fields)

    hour = pb.Cuped(lookback={"seconds": 3600})
    metrics = [
        metric("score", cuped=hour),
        mean("mean", "score", pb.UNIT_AGGREGATION_MEAN, cuped=hour),
        mean("least", "score", pb.UNIT_AGGREGATION_MIN),
        metric("share", proportion=pb.ProportionMetric(event_name="click", threshold=1.0)),
        metric("rate", ratio=pb.RatioMetric(numerator=source("score"), denominator=source("click", 2))),
        metric("count", count=pb.CountMetric(event_name="click"), conversion_window={"seconds": 7200}),
        mean(
            "aged",
            "score",
            cuped=pb.Cuped(exposure_covariate="age"),
            winsorization=pb.Winsorization(lower_value=-2.0, upper_value=3.0),
        ),
        metric("p90", quantile=pb.QuantileMetric(event_name="score", quantile=0.9)),
        metric("median", quantile=pb.QuantileMetric(event_name="score", quantile=0.5, is_of_unit_means=True)),
        metric("better", pairwise=pb.PairwiseMetric(event_name="better")),
    ]
    return spec(metrics=metrics)


UNITS = st.sampled_from(["ann", "bob", "eve"])
HOURS = st.integers(0, 24).map(lambda quarter: quarter / 4)
VARIANTS = st.sampled_from(["control", "tuned"])
KINDS = st.one_of(
    st.tuples(st.just("exposure"), UNITS, HOURS, VARIANTS, st.sampled_from([None, 1.0, 7.5])),
    st.tuples(
        st.just("sample"), UNITS, HOURS, st.sampled_from(["score", "click"]), st.floats(-5, 5, width=16)
    ),
    st.tuples(st.just("judgement"), UNITS, HOURS, st.integers(0, 3), st.integers(0, 3)),
)


def event(number: int, kind: str, unit: str, hours: float, first, second) -> pb.ExperimentEvent:
    if kind == "exposure":
        covariates = {} if second is None else {"age": second}
        return exposure(str(number), unit, first, hours, covariates=covariates)
    if kind == "sample":
        return sample(str(number), unit, second, hours, first)
    return judgement(str(number), unit, first, second, hours=hours)


def assert_equal(one: Snapshot, other: Snapshot) -> None:
    assert recompute.compared(one, other)[1] == []
    assert (one.groups, one.tallies, one.units_by_day) == (other.groups, other.tallies, other.units_by_day)
    assert one.quality.unexposed == other.quality.unexposed


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(KINDS, min_size=1, max_size=30), st.integers(0, 2**32), st.integers(1, 9))
async def test_order_and_batching_make_no_difference(tmp_path_factory, drawn, seed, size):
    events = [event(number, *each) for number, each in enumerate(drawn)]
    mixed = random.Random(seed).sample(events, len(events))
    folder = tmp_path_factory.mktemp("order")

    async def two_phases(opened, batches):
        await opened.change(lambda found: found.reweighted({"control": 0.2, "tuned": 0.8}, at(3), "more"))
        for batch in batches:
            await opened.take(*batch)
        return await opened.snapshot(), await opened.recomputed()

    async with intake(f"sqlite:///{folder / 'one.db'}", many_metrics()) as opened:
        whole, made = await two_phases(opened, [events])
    parts = [mixed[start : start + size] for start in range(0, len(mixed), size)]
    # And some again, as a client does that did not hear the answer.
    async with intake(f"sqlite:///{folder / 'two.db'}", many_metrics()) as opened:
        split, remade = await two_phases(opened, [*parts, parts[0]])
    assert_equal(whole, split)
    assert_equal(whole, made.snapshot)
    assert_equal(whole, remade.snapshot)
    assert made.differences == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(KINDS, min_size=1, max_size=30), st.integers(1, 9), st.randoms(use_true_random=False))
async def test_caps_that_were_taken_again_and_again_can_be_recomputed(tmp_path_factory, drawn, size, random):
    caps = pb.Winsorization(lower_quantile=0.2, upper_quantile=0.7, calibration_units=2)
    made = spec(
        metrics=[
            metric("score", winsorization=caps),
            metric("count", count=pb.CountMetric(event_name="click"), winsorization=caps),
            metric(
                "aged",
                mean=pb.MeanMetric(source=pb.EventSource(event_name="score")),
                winsorization=caps,
                conversion_window={"seconds": 7200},
                cuped=pb.Cuped(exposure_covariate="age"),
            ),
            metric(
                "rate",
                ratio=pb.RatioMetric(
                    numerator=pb.EventSource(event_name="score"),
                    denominator=pb.EventSource(event_name="click", aggregation=pb.UNIT_AGGREGATION_COUNT),
                ),
                winsorization=caps,
            ),
        ],
        exposure_grace={"seconds": 900},
    )
    events = [event(number, *each) for number, each in enumerate(drawn)]
    events = [each for each in events if each.WhichOneof("body") != "judgement"]
    async with intake(f"sqlite:///{tmp_path_factory.mktemp('caps') / 'one.db'}", made) as opened:
        await opened.change(lambda found: found.reweighted({"control": 0.2, "tuned": 0.8}, at(3), "more"))
        shown = {}
        for start in range(0, len(events), size):
            opened.now = at(4 + start / 8)
            await opened.take(*events[start : start + size])
            if random.random() < 0.5:
                opened.now += timedelta(minutes=1)
                await opened.reexamined()
            if random.random() < 0.5:
                opened.reopen(lambda: opened.now)
            shown[opened.now] = await opened.snapshot()
            assert not (await opened.recomputed()).differences
        for moment, found in shown.items():
            assert_equal(await opened.as_of(moment), found)


async def _filled(events) -> None:
    await events.take(exposure("1", "ann", "control", 1), sample("2", "ann", 2.0, 2))
    events.now = NOW + timedelta(hours=1)
    await events.take(exposure("3", "bob", "tuned", 3), sample("4", "ann", 4.0, 1.5))


async def test_raw_events_come_back_as_they_were(database_url):
    rows = pb.EventRows(
        events=[
            exposure("1", "ann", "control", 1, covariates={"age": 3.0}, served_variant_id="tuned", phase=1),
            sample("2", "ännchen", -0.5),
            judgement("3", "prompt", 1, 2, judge="a model"),
        ]
    )
    (batch,) = batches_of(pb.RecordEventsRequest(test_id="t", rows=rows))
    again = Batch.from_bytes("t", batch.to_bytes())
    assert again.rows.tobytes() == batch.rows.tobytes()
    assert (again.event_ids, again.unit_ids) == (batch.event_ids, batch.unit_ids)
    assert (again.covariates, again.judges) == ({0: {"age": 3.0}}, {2: "a model"})
    assert (again.names, again.variants) == (["score", "better"], ["control", "tuned"])


async def test_a_replay_by_the_servers_clock_knows_what_had_come_by_then(database_url):
    async with intake(database_url) as events:
        await _filled(events)
        async with events.database.read() as connection:
            found = await recompute.as_of(connection, PROJECT, "t", NOW)
    assert found.cells[1, "control", "score"].sample.observed.sum() == 2.0
    assert (found.quality.accepted, (1, "tuned") in found.groups) == (2, False)


async def test_a_replay_by_the_callers_clock_knows_what_had_happened_by_then(database_url):
    async with intake(database_url) as events:
        await _filled(events)
        async with events.database.read() as connection:
            found = await recompute.as_of(connection, PROJECT, "t", at(1.7), pb.REPLAY_CLOCK_HAPPENED)
    assert found.cells[1, "control", "score"].sample.observed.sum() == 4.0
    assert (found.quality.accepted, (1, "tuned") in found.groups) == (2, False)


async def test_a_stored_statistic_that_is_wrong_is_found_and_put_right(database_url):
    async with intake(database_url) as events:
        await _filled(events)
        right = await events.snapshot()
        async with events.database.write() as connection:
            await connection.exec_driver_sql(
                "UPDATE cells SET counts = '[7, 0, false]' WHERE metric_id = 'score'"
            )
        found = await events.recomputed()
        wrong = {(each.variant_id, each.statistic): each for each in found.differences}
        assert wrong["control", "events"].stored == 7
        assert wrong["control", "events"].recomputed == 2
        assert found.max_relative_difference == pytest.approx(1.0)
        assert (await events.recomputed()).differences
        await events.recomputed(replace_stored=True)
        assert_equal(await events.snapshot(), right)
        assert not (await events.recomputed()).differences
        # And it goes on from there.
        await events.take(sample("9", "bob", 1.0, 4))
        assert not (await events.recomputed()).differences


async def test_events_that_move_to_another_variant_make_the_sketch_anew(database_url):
    made = spec(metrics=[metric("p50", quantile=pb.QuantileMetric(event_name="score", quantile=0.5))])
    async with intake(database_url, made) as events:
        await events.change(lambda found: found.reweighted({"control": 0.2, "tuned": 0.8}, at(10), "more"))
        await events.take(exposure("1", "ann", "control", 1), sample("2", "ann", 1.0, 2))
        await events.take(sample("3", "ann", 2.0, 13), exposure("4", "ann", "control", 12))
        await events.take(exposure("5", "ann", "tuned", 0.5))
        found, recomputed = await events.snapshot(), await events.recomputed()
    assert recomputed.differences == []
    assert {key: cell.events for key, cell in found.cells.items()} == {
        (1, "tuned", "p50"): 2,
    }


async def test_raw_events_leave_by_age_and_the_statistics_stay(database_url):
    async with intake(database_url) as events:
        await _filled(events)
        before = await events.snapshot()
        events.now = at(24 * 90 + 10)
        experiment = await events.experiment()
        assert await retention.expire(events.store, events.projections, experiment, events.now) == 4
        again = await retention.expire(events.store, events.projections, experiment, events.now)
        assert again == 0
        assert_equal(await events.snapshot(), before)
        with pytest.raises(FailedPrecondition, match="can no longer be recomputed") as refused:
            await events.recomputed()
        assert refused.value.reason == "RAW_EVENTS_EXPIRED"
        # Sent again they are too old, and not taken for new ones.
        outcome = await events.take(sample("2", "ann", 2.0, 2))
        assert [key[1] for key in outcome.rejected] == [pb.EVENT_REJECTION_TOO_OLD]
        assert_equal(await events.snapshot(), before)


async def test_statistics_are_not_recomputed_on_when_nobody_waits_for_it(database_url):
    async with intake(database_url) as opened:
        await opened.take(exposure("1", "u1", "control", 0))
        async with opened.store.read(PROJECT) as experiments:
            experiment = await experiments.experiment("t")
            raw = await raw_events.until(experiments.connection, PROJECT, "t")
    assert raw
    recomputation = recompute._Recomputation(PROJECT, experiment, {})
    assert await is_given_up(lambda: recomputation.of(raw, 0))
