from __future__ import annotations

import asyncio
import random
from dataclasses import astuple
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiment.ingesting import NOW, PROJECT, exposure, intake, sample
from experiment.intake.test_recompute import assert_equal, many_metrics
from experiment.serving import metric, spec
from neuroweaver.experiment import housekeeping
from neuroweaver.experiment.domain import specification
from neuroweaver.experiment.domain.snapshot import Cell, Snapshot
from neuroweaver.experiment.intake import checkpoints, raw_events, recompute, retention, sketching
from neuroweaver.experiment.intake.key_index import KeyIndex
from neuroweaver.experiment.intake.projection import Projections
from neuroweaver.experiment.intake.readings import Plan, TotalKind
from neuroweaver.experiment.storage.store import Store
from neuroweaver.statistics.arm import Sample
from neuroweaver.statistics.moments import Moments
from neuroweaver.statistics.sketch import GroupedSketch
from neuroweaver.v1 import experiment_pb2 as pb


def told(first: int, count: int, seed: int):
    """Exposures and samples of some units, out of order."""
    drawn = random.Random(seed)
    found = []
    for number in range(first, first + count):
        unit = f"u{number % 17}"
        found += [
            exposure(f"e{number}", unit, ["control", "tuned"][number % 17 % 2], drawn.uniform(1, 3)),
            sample(f"s{number}", unit, drawn.uniform(-5, 5), drawn.uniform(0.5, 5)),
            sample(f"c{number}", unit, 1.0, drawn.uniform(0.5, 5), "click"),
        ]
    drawn.shuffle(found)
    return found


def begun_anew(events) -> None:
    """As another process would."""
    events.reopen(events.store.clock)


async def test_a_process_that_begins_anew_goes_on_where_the_last_one_was(database_url):
    async with intake(database_url, many_metrics()) as events:
        for number in range(4):
            await events.take(*told(10 * number, 10, number))
            begun_anew(events)
        assert (await events.take(*told(0, 10, 0))).duplicates == 30
        assert not (await events.recomputed()).differences


async def test_a_checkpoint_takes_the_place_of_the_events_before_it(database_url):
    async with intake(database_url, many_metrics()) as events:
        await events.take(*told(0, 20, 1))
        assert await retention.keep_checkpoint(
            events.store, events.projections, await events.experiment(), is_forced=True
        )
        await events.take(*told(20, 20, 2))
        begun_anew(events)
        async with events.database.write() as connection:
            # Nothing reads it any more, but for its keys.
            await connection.exec_driver_sql("UPDATE event_batches SET payload = '' WHERE number = 1")
        outcome = await events.take(*told(0, 60, 3))
        assert (outcome.accepted, outcome.duplicates) == (60, 120)
        begun_anew(events)
        again = await events.take(*told(0, 60, 3))
        found = await events.snapshot()
    assert (again.accepted, again.duplicates) == (0, 180)
    assert found.quality.accepted == 180


@pytest.mark.parametrize("has_checkpoint", [False, True])
async def test_a_process_that_begins_anew_knows_whose_event_an_id_is(database_url, has_checkpoint):
    async with intake(database_url) as events:
        await events.take(exposure("1", "ann", "control"), sample("2", "ann", 1.0))
        if has_checkpoint:
            assert await retention.keep_checkpoint(
                events.store, events.projections, await events.store.experiment(PROJECT, "t"), is_forced=True
            )
        begun_anew(events)
        outcome = await events.take(sample("2", "bob", 1.0), sample("2", "ann", 1.0))
    assert (outcome.accepted, outcome.duplicates) == (0, 1)
    assert outcome.rejected["t", pb.EVENT_REJECTION_ID_OF_ANOTHER_UNIT].event_ids == ("2",)


async def test_events_of_the_time_before_units_were_kept_with_ids_are_duplicates_as_before(database_url):
    async with intake(database_url) as events:
        await events.take(exposure("1", "ann", "control"), sample("2", "ann", 1.0))
        assert await retention.keep_checkpoint(
            events.store, events.projections, await events.store.experiment(PROJECT, "t"), is_forced=True
        )
        async with events.database.write() as connection:
            await connection.exec_driver_sql("UPDATE event_batches SET unit_marks = NULL")
        begun_anew(events)
        assert (await events.take(sample("2", "bob", 1.0))).duplicates == 1


async def test_with_and_without_checkpoints_the_statistics_are_the_same(tmp_path):
    snapshots = []
    for is_kept in (False, True):
        async with intake(f"sqlite:///{tmp_path / f'{is_kept}.db'}", many_metrics()) as events:
            for number in range(6):
                await events.take(*told(7 * number, 7, number))
                if is_kept:
                    experiment = await events.experiment()
                    assert await retention.keep_checkpoint(
                        events.store, events.projections, experiment, is_forced=True
                    )
                    begun_anew(events)
            snapshots.append(await events.snapshot())
            assert not (await events.recomputed()).differences
    assert_equal(*snapshots)


async def test_two_processes_that_take_turns_see_each_others_events(database_url):
    async with intake(database_url, many_metrics()) as events:
        one, other = events.projections, Projections()
        for number in range(6):
            events.projections = (one, other)[number % 2]
            outcome = await events.take(*told(5 * number, 10, number))
            assert outcome.duplicates == (15 if number else 0)
        assert not (await events.recomputed()).differences


async def test_two_processes_at_once_count_each_event_once(database_url):
    async with intake(database_url, many_metrics()) as events:
        other = await _beside(events)
        for number in range(5):
            both = await asyncio.gather(
                events.take(*told(20 * number, 20, number)), other.take(*told(20 * number, 20, number))
            )
            assert sum(outcome.accepted for outcome in both) == 60
        assert not (await events.recomputed()).differences


async def _beside(events):
    return type(events)(events.database, Store(events.database, clock=events.store.clock), now=events.now)


async def test_an_older_checkpoint_does_not_take_the_place_of_a_newer_one(database_url):
    async with intake(database_url) as events:
        await events.take(exposure("1", "ann", "control"))
        experiment = await events.experiment()
        plan = Plan(experiment.spec)
        async with events.projections.hold(PROJECT, ["t"]) as held, events.database.read() as reading:
            old = dict((await held.current(reading, PROJECT, experiment, plan)).table.arrays())
        await events.take(exposure("2", "bob", "tuned"))
        assert await retention.keep_checkpoint(events.store, events.projections, experiment, is_forced=True)
        assert not await checkpoints.save(events.database, PROJECT, "t", plan, 1, old, NOW)
        async with events.database.read() as connection:
            number, table = await checkpoints.load(connection, PROJECT, "t", plan)
            kept = await connection.exec_driver_sql("SELECT DISTINCT checkpoint_id FROM checkpoints")
            assert len(kept.all()) == 1
    assert (number, len(table)) == (2, 2)


async def test_units_go_on_after_their_raw_events_have_left(database_url):
    quantile = metric("p50", quantile=pb.QuantileMetric(event_name="score", quantile=0.5))
    async with intake(database_url, spec(metrics=[metric(), quantile])) as events:
        await events.take(exposure("1", "ann", "control"), sample("2", "ann", 1.0))
        events.now = NOW + timedelta(days=85)
        events.reopen(lambda: events.now)
        assert (
            await retention.expire(events.store, events.projections, await events.experiment(), events.now)
            == 2
        )
        begun_anew(events)
        assert (await events.take(sample("3", "ann", 2.0, 24 * 30))).accepted == 1
        found = await events.snapshot()
    assert found.cells[1, "control", "score"].sample.observed.sum() == 3.0
    assert found.cells[1, "control", "p50"].events == 2


async def test_the_projections_used_longest_ago_leave_when_there_are_too_many(tmp_path):
    async with intake(f"sqlite:///{tmp_path / 'e.db'}") as events:
        await events.add(spec(), "other")
        events.projections = Projections(budget_bytes=0)
        lost = exposure("1", "ann", "control")
        lost.test_id = "other"
        await events.take(exposure("1", "ann", "control"))
        await events.take(lost)
        assert list(events.projections._slots) == [(PROJECT, "other")]
        assert (await events.take(exposure("1", "ann", "control"))).duplicates == 1


async def test_a_checkpoint_of_an_earlier_version_serves_where_raw_events_are_gone(database_url):
    window = specification.Duration(seconds=7200)
    async with intake(database_url, spec(metrics=[metric(conversion_window=window)])) as events:
        await events.take(exposure("1", "ann", "control", 1), sample("2", "ann", 3.0, 2))
        experiment = await events.experiment()
        plan = Plan(experiment.spec)
        async with events.projections.hold(PROJECT, ["t"]) as held, events.database.read() as connection:
            projection = await held.current(connection, PROJECT, experiment, plan)
            arrays = dict(projection.table.arrays())
        columns = {total.place for total in plan.totals[: plan.used_totals] if total.kind is TotalKind.NUMBER}
        arrays["numbers"] = arrays["numbers"][:, : len(columns)]
        assert await checkpoints.save(events.database, PROJECT, "t", plan, 1, arrays, NOW)
        first = checkpoints.first_form_of(plan)
        async with events.database.write() as connection:
            await connection.exec_driver_sql(f"UPDATE totals SET checkpoint_form = '{first}'")
        events.reopen(lambda: NOW)
        # While raw events are whole, they are read again.
        await events.take(sample("3", "ann", 4.0, 2.5))
        async with events.database.write() as connection:
            await connection.exec_driver_sql("UPDATE totals SET expired_batches = 1")
            await connection.exec_driver_sql("DELETE FROM event_batches WHERE number = 1")
        events.reopen(lambda: NOW)
        await events.take(sample("4", "ann", 5.0, 2.7))
        found = await events.snapshot()
    assert found.cells[1, "control", "score"].sample.observed.sum() == 12.0
    assert all(count >= 0 for use in found.uses.values() for count in astuple(use))


async def test_raw_events_stay_while_no_checkpoint_that_can_be_read_covers_them(database_url):
    async with intake(database_url) as events:
        await events.take(exposure("1", "ann", "control"), sample("2", "ann", 1.0))
        assert await retention.keep_checkpoint(
            events.store, events.projections, await events.experiment(), is_forced=True
        )
        async with events.database.write() as connection:
            await connection.exec_driver_sql("UPDATE totals SET checkpoint_form = '0.of-another-version'")
        events.now = NOW + timedelta(days=85)
        events.reopen(lambda: events.now)
        # A new checkpoint takes the old one's place first.
        assert (
            await retention.expire(events.store, events.projections, await events.experiment(), events.now)
            == 2
        )
        begun_anew(events)
        assert (await events.take(sample("3", "ann", 2.0, 24 * 30))).accepted == 1
        found = await events.snapshot()
    assert found.cells[1, "control", "score"].sample.observed.sum() == 3.0


async def test_a_process_that_lags_behind_expired_events_begins_anew(database_url):
    async with intake(database_url) as events:
        await events.take(exposure("1", "ann", "control"))
        lagging = events.projections
        begun_anew(events)
        await events.take(exposure("2", "bob", "tuned", 2))
        events.now = NOW + timedelta(days=85)
        store = Store(events.database, clock=lambda: events.now)
        assert await retention.expire(store, Projections(), await events.experiment(), events.now) == 2
        events.projections = lagging
        await events.take(exposure("3", "bob", "control", 24 * 30))
        found = await events.snapshot()
    assert {key: group.units for key, group in found.groups.items()} == {(1, "control"): 1, (1, "tuned"): 1}


async def test_a_sketch_that_became_stale_keeps_the_raw_events_until_it_is_mended(database_url, monkeypatch):
    made = spec(metrics=[metric("p50", quantile=pb.QuantileMetric(event_name="score", quantile=0.5))])
    async with intake(database_url, made) as events:
        await events.take(exposure("1", "ann", "control", 2), sample("2", "ann", 1.0, 3))
        await events.take(exposure("3", "ann", "tuned", 1))
        events.now = NOW + timedelta(days=85)
        events.reopen(lambda: events.now)
        experiment = await events.experiment()
        with monkeypatch.context() as patched:
            patched.setattr(sketching, "mend", _mends_nothing)
            assert await retention.expire(events.store, events.projections, experiment, events.now) == 0
        assert await retention.expire(events.store, events.projections, experiment, events.now) == 3
        found = await events.snapshot()
    assert GroupedSketch.from_bytes(found.cells[1, "tuned", "p50"].sketch).events == 1


async def _mends_nothing(*_):
    return 0


async def test_events_of_a_window_are_not_sketched_again_when_their_exposure_moves(database_url):
    quantile = pb.QuantileMetric(event_name="score", quantile=0.5)
    made = spec(metrics=[metric("p50", quantile=quantile, conversion_window={"seconds": 86400 * 30})])
    async with intake(database_url, made) as events:
        await events.take(exposure("0", "old", "control", 1))
        events.now = NOW + timedelta(days=85)
        events.reopen(lambda: events.now)
        assert (
            await retention.expire(events.store, events.projections, await events.experiment(), events.now)
            == 1
        )
        day = 24.0
        await events.take(
            exposure("1", "ann", "control", 40 * day),
            *(sample(f"s{i}", "ann", float(i), 41 * day) for i in range(50)),
        )
        await events.take(exposure("2", "ann", "control", 39 * day))
        await events.take(exposure("3", "ann", "control", 38 * day))
        cell = (await events.snapshot()).cells[1, "control", "p50"]
    assert (cell.events, GroupedSketch.from_bytes(cell.sketch).events) == (50, 50)


async def test_a_refused_transaction_costs_no_projection(database_url):
    async with intake(database_url) as events:
        await events.take(exposure("1", "ann", "control"))
        known = events.projections._slots[PROJECT, "t"].projection
        async with events.database.write() as connection:
            await connection.exec_driver_sql("ALTER TABLE cells RENAME TO gone")
        with pytest.raises(Exception, match="cells"):
            await events.take(sample("2", "ann", 1.0))
        async with events.database.write() as connection:
            await connection.exec_driver_sql("ALTER TABLE gone RENAME TO cells")
        assert (await events.take(sample("2", "ann", 1.0))).accepted == 1
        assert events.projections._slots[PROJECT, "t"].projection is known
        assert not (await events.recomputed()).differences


async def test_names_that_were_rejected_are_not_kept(tmp_path):
    async with intake(f"sqlite:///{tmp_path / 'e.db'}") as events:
        outcome = await events.take(
            *(sample(f"x{i}", "ann", 1.0, name=f"unknown_{i}") for i in range(20)),
            exposure("1", "ann", "nobody"),
            exposure("2", "ann", "tuned"),
            sample("3", "ann", 1.5),
        )
        async with events.database.read() as connection:
            ((_, batch),) = await raw_events.until(connection, PROJECT, "t")
        found = await events.snapshot()
    assert outcome.accepted == 2
    assert (batch.names, batch.variants) == (["score"], ["tuned"])
    assert found.cells[1, "tuned", "score"].sample.observed.sum() == 1.5


async def test_one_experiment_that_cannot_be_read_holds_up_no_other(database_url):
    async with intake(database_url) as events:
        await events.add(spec(), "another")
        await events.take(exposure("1", "ann", "control"))
        lost = exposure("1", "bob", "tuned")
        lost.test_id = "another"
        await events.take(lost)
        async with events.database.write() as connection:
            await connection.exec_driver_sql(
                "UPDATE event_batches SET payload = '' WHERE test_id = 'another'"
            )
        events.now = NOW + timedelta(days=85)
        store = Store(events.database, clock=lambda: events.now)
        assert await housekeeping.chores(store, Projections(), store.clock())["raw events"]() == 1


async def test_samples_that_no_exposure_can_move_leave_memory(tmp_path):
    made = spec(metrics=[metric(conversion_window={"seconds": 86400})])
    async with intake(f"sqlite:///{tmp_path / 'e.db'}", made) as events:
        await events.take(exposure("1", "ann", "control"), *(sample(f"s{i}", "ann", 1.0) for i in range(300)))
        events.now = NOW + timedelta(days=85)
        events.reopen(lambda: events.now)
        experiment = await events.experiment()
        assert await retention.keep_checkpoint(events.store, events.projections, experiment, is_forced=True)
        projection = events.projections._slots[PROJECT, "t"].projection
        assert len(projection.table._loose.all()) == 0
        assert (await events.take(sample("late", "ann", 1.0, 24 * 30))).accepted == 1
        found = await events.snapshot()
    assert found.cells[1, "control", "score"].sample.observed.sum() == 300.0


async def test_a_unit_with_very_many_early_samples_is_counted_whole(tmp_path):
    async with intake(f"sqlite:///{tmp_path / 'e.db'}") as events:
        for unit in ("ann", "bob"):
            await events.take(*(sample(f"{unit}{i}", unit, float(i)) for i in range(500)))
        await events.take(exposure("1", "bob", "tuned"), exposure("2", "ann", "control"))
        found = await events.snapshot()
    assert found.cells[1, "control", "score"].sample.observed.sum() == sum(range(500))
    assert found.cells[1, "tuned", "score"].events == 500


def test_a_variance_that_is_rounding_alone_is_no_difference():
    one = Moments.of(np.array([0.1] * 5))
    other = one + Moments.of(np.array([1e9])) - Moments.of(np.array([1e9]))
    left, right = (Snapshot(cells={(1, "a", "m"): Cell(Sample(each), 5)}) for each in (one, other))
    assert recompute.compared(left, right)[1] == []
    wrong = Snapshot(cells={(1, "a", "m"): Cell(Sample(Moments.of(np.array([0.1] * 4 + [0.10001]))), 5)})
    assert {each.statistic for each in recompute.compared(left, wrong)[1]} == {"mean", "m2"}


keys = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), unique=True, max_size=30)


@given(st.lists(keys, max_size=6), keys)
def test_an_index_gives_places_in_the_order_in_which_keys_came(added, wanted):
    index, places = KeyIndex(), {}
    for some in added:
        new = [key for key in some if key not in places]
        places |= {key: len(places) + number for number, key in enumerate(new)}
        index.add(np.array(new, np.uint64).reshape(-1, 2))
    found = index.find(np.array(wanted, np.uint64).reshape(-1, 2))
    assert found.tolist() == [places.get(key, -1) for key in wanted]
    assert [tuple(key) for key in index.keys().tolist()] == list(places)


@pytest.mark.parametrize("value", [1e20, -1e20])
async def test_the_largest_values_are_counted(tmp_path, value):
    async with intake(f"sqlite:///{tmp_path / 'e.db'}") as events:
        await events.take(
            exposure("1", "ann", "control"), *(sample(str(i), "ann", value) for i in range(2, 9))
        )
        found = await events.snapshot()
    assert found.cells[1, "control", "score"].sample.observed.sum() == 7 * value
