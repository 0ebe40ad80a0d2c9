from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import date, timedelta

import numpy as np
import pytest
from sqlalchemy import text

from experiment.figures import experiment
from experiment.ingesting import NOW, at, exposure, intake, judgement, sample
from experiment.serving import metric, spec
from neuroweaver.experiment.domain import specification
from neuroweaver.experiment.domain.snapshot import Calibration, Group, Uses
from neuroweaver.experiment.intake.ingestion import phases_then
from neuroweaver.experiment.storage import tables
from neuroweaver.mesh.wire.clock import microseconds
from neuroweaver.statistics.pairwise import Judgements
from neuroweaver.statistics.winsorization import Caps
from neuroweaver.v1 import experiment_pb2 as pb

CONTROL, TUNED = (1, "control", "score"), (1, "tuned", "score")
BASELINE, CANDIDATE, TIE = (
    pb.PAIRWISE_OUTCOME_BASELINE,
    pb.PAIRWISE_OUTCOME_CANDIDATE,
    pb.PAIRWISE_OUTCOME_TIE,
)


def cuped(**fields):
    return metric(cuped=pb.Cuped(**fields))


def hours(number):
    return specification.Duration(seconds=int(number * 3600))


def better(**fields):
    return spec(
        metrics=[metric(), metric("better", pairwise=pb.PairwiseMetric(event_name="better"))], **fields
    )


async def test_a_unit_counts_once_with_the_sum_of_its_events(database_url):
    async with intake(database_url) as events:
        outcome = await events.take(
            exposure("1", "ann", "control"),
            exposure("2", "bob", "tuned"),
            exposure("3", "eve", "tuned"),
            sample("4", "ann", 1.5),
            sample("5", "ann", 2.0),
            sample("6", "bob", 4.0),
        )
        assert (outcome.received, outcome.accepted, outcome.duplicates, outcome.late) == (6, 6, 0, 0)
        found = await events.snapshot()
    assert found.groups == {(1, "control"): Group(1), (1, "tuned"): Group(2)}
    control, tuned = found.cells[CONTROL], found.cells[TUNED]
    assert (control.sample.observed.n, control.sample.observed.sum(), control.events) == (1, 3.5, 2)
    assert (tuned.sample.observed.n, tuned.sample.observed.mean()) == (2, 2.0)
    assert tuned.sample.observed.m2() == 8.0
    assert (tuned.events, tuned.units_without_events, tuned.sample.missing) == (1, 1, None)
    assert found.units_by_day == {date(2026, 1, 1): 3}
    assert (found.quality.accepted, found.quality.last_event_time) == (6, at(2))


async def test_an_event_that_comes_again_changes_nothing(database_url):
    async with intake(database_url) as events:
        told = [exposure("1", "ann", "control"), sample("2", "ann", 1.0), sample("2", "ann", 9.0)]
        first, second = await events.take_batches([told, told])
        assert (first.accepted, first.duplicates) == (2, 1)
        assert (second.accepted, second.duplicates, second.received) == (0, 3, 3)
        third = await events.take(*told, sample("3", "ann", 2.0))
        assert (third.accepted, third.duplicates) == (1, 3)
        found = await events.snapshot()
        assert found.cells[CONTROL].sample.observed.sum() == 3.0
        assert (found.quality.accepted, found.quality.duplicates) == (3, 7)


async def test_an_event_id_that_units_share_is_no_retry(database_url):
    async with intake(database_url) as events:
        exposed = [exposure(unit, unit, "control") for unit in ("ann", "bob", "eve")]
        shared = [sample("order", unit, 1.0) for unit in ("ann", "bob", "eve")]
        first, second = await events.take_batches([[*exposed, *shared[:2]], [*shared[1:], shared[0]]])
        third = await events.take(*shared, sample("order", "ann", 5.0))
        found = await events.snapshot()
    reason = pb.EVENT_REJECTION_ID_OF_ANOTHER_UNIT
    assert [
        (outcome.accepted, outcome.duplicates, outcome.rejected["t", reason].count)
        for outcome in (first, second, third)
    ] == [(4, 0, 1), (0, 1, 2), (0, 2, 2)]
    assert third.rejected["t", reason].event_ids == ("order", "order")
    assert found.cells[CONTROL].sample.observed.sum() == 1.0
    assert (found.quality.accepted, found.quality.duplicates) == (4, 3)
    assert [(rejected.reason, rejected.count) for rejected in found.quality.rejected] == [(reason, 5)]


async def test_the_same_event_id_in_another_experiment_is_another_event(database_url):
    async with intake(database_url) as events:
        await events.add(spec(), "other")
        told = sample("1", "ann", 1.0)
        elsewhere = sample("1", "ann", 1.0)
        elsewhere.test_id = "other"
        first, second = await events.take_batches([[told], [elsewhere]])
    assert (first.accepted, second.accepted) == (1, 1)


async def test_an_exposure_that_arrives_late_takes_the_events_after_it(database_url):
    async with intake(database_url) as events:
        await events.take(
            sample("1", "ann", 1.0, 0.5), sample("2", "ann", 2.0, 1), sample("3", "ann", 4.0, 3)
        )
        early = await events.snapshot()
        assert (early.quality.unexposed, early.cells) == (3, {})
        await events.take(exposure("4", "ann", "tuned", 1))
        found = await events.snapshot()
    # What happened at the very instant of the exposure counts.
    assert found.cells[TUNED].sample.observed.sum() == 6.0
    assert found.quality.unexposed == 0


async def test_an_earlier_exposure_that_arrives_later_moves_the_unit(database_url):
    async with intake(database_url) as events:
        await events.take(exposure("1", "ann", "tuned", 2), sample("2", "ann", 1.0, 3))
        await events.take(exposure("3", "ann", "control", 1), sample("4", "ann", 2.0, 1.5))
        found = await events.snapshot()
    assert found.groups == {(1, "control"): Group(1, 0, 1)}
    assert list(found.cells) == [CONTROL]
    assert found.cells[CONTROL].sample.observed.sum() == 3.0


async def test_a_unit_served_another_variant_is_mismatched_under_its_own(database_url):
    async with intake(database_url) as events:
        await events.take(
            exposure("1", "ann", "tuned"),
            exposure("2", "ann", "tuned", 2, served_variant_id="control"),
            exposure("3", "bob", "tuned", served_variant_id="tuned"),
        )
        found = await events.snapshot()
    assert found.groups == {(1, "tuned"): Group(2, 1, 0)}


async def test_what_is_not_known_is_counted_and_named(database_url):
    async with intake(database_url) as events:
        outcome = await events.take(
            exposure("1", "ann", "blue"),
            exposure("2", "ann", "control", served_variant_id="red"),
            sample("3", "ann", 1.0, name="clicks"),
            sample("4", "ann", 1.0, name="clicks"),
            judgement("5", "prompt", TIE, TIE),
            exposure("6", "ann", "control"),
        )
        assert outcome.accepted == 1
        variants = outcome.rejected["t", pb.EVENT_REJECTION_UNKNOWN_VARIANT]
        metrics = outcome.rejected["t", pb.EVENT_REJECTION_UNKNOWN_METRIC]
        assert (variants.count, variants.names, variants.event_ids) == (2, ("blue", "red"), ("1", "2"))
        assert (metrics.count, metrics.names, metrics.event_ids) == (3, ("clicks", "better"), ("3", "4", "5"))
        assert (await events.snapshot()).quality.rejected == (variants, metrics)
        # A rejected event was not taken in: sent again it is rejected again, and never a duplicate.
        again = await events.take(exposure("1", "ann", "blue"))
        assert (again.duplicates, again.rejected[("t", 2)].count) == (0, 1)


async def test_an_unknown_experiment_is_told_by_its_name(database_url):
    async with intake(database_url) as events:
        lost = sample("1", "ann", 1.0)
        lost.test_id = "gone"
        outcome = await events.take(lost)
    rejection = outcome.rejected["gone", pb.EVENT_REJECTION_UNKNOWN_EXPERIMENT]
    assert (outcome.accepted, rejection.count, rejection.event_ids) == (0, 1, ("1",))


@pytest.mark.parametrize(
    ("hour", "reason"),
    [
        (-0.003, pb.EVENT_REJECTION_BEFORE_START),
        # Within the grace of ten seconds.
        (-0.0027, None),
        (0, None),
        (24 * 11 - 0.001, None),
        (24 * 11 + 0.001, pb.EVENT_REJECTION_IN_FUTURE),
    ],
)
async def test_events_outside_of_the_experiments_time_are_rejected(database_url, hour, reason):
    async with intake(database_url) as events:
        outcome = await events.take(exposure("1", "ann", "control", hour))
    assert [key[1] for key in outcome.rejected] == ([reason] if reason else [])


async def test_events_after_the_stop_are_rejected_and_those_before_it_are_not(database_url):
    async with intake(database_url) as events:
        await events.change(lambda found: found.stopped(at(5), pb.STOP_CAUSE_REQUESTED, ""))
        outcome = await events.take(exposure("1", "ann", "control", 4.9), sample("2", "ann", 1.0, 5))
    assert outcome.accepted == 1
    assert [key[1] for key in outcome.rejected] == [pb.EVENT_REJECTION_AFTER_STOP]


async def test_events_older_than_the_raw_ones_kept_are_rejected(database_url):
    async with intake(database_url) as events:
        events.now = NOW + timedelta(days=81)
        outcome = await events.take(exposure("1", "ann", "control", 1), exposure("2", "ann", "control", 25))
    assert [key[1] for key in outcome.rejected] == [pb.EVENT_REJECTION_TOO_OLD]
    assert outcome.accepted == 1


async def test_a_unit_counts_in_the_phase_and_variant_of_its_first_exposure(database_url):
    async with intake(database_url) as events:
        await events.change(lambda found: found.reweighted({"control": 0.2, "tuned": 0.8}, at(10), "faster"))
        outcome = await events.take(
            exposure("1", "ann", "control", 1),
            sample("2", "ann", 1.0, 11),
            exposure("3", "ann", "tuned", 12),
            sample("4", "ann", 2.0, 13),
            # By the configuration of the first phase, which its evaluator still had.
            exposure("5", "bob", "control", 11, phase=1),
            exposure("6", "cid", "tuned", 12),
            sample("7", "cid", 4.0, 13),
        )
        found = await events.snapshot()
    assert outcome.late == 1
    assert found.groups == {(1, "control"): Group(2, multiply_exposed=1), (2, "tuned"): Group(1)}
    assert found.cells[CONTROL].sample.observed.sum() == 3.0
    assert found.cells[2, "tuned", "score"].sample.observed.sum() == 4.0
    assert found.units_by_day == {date(2026, 1, 1): 3}


async def test_a_unit_that_an_override_assigns_is_not_analysed(database_url):
    async with intake(database_url, spec(overrides={"tester": "tuned"})) as events:
        outcome = await events.take(exposure("1", "tester", "tuned"), sample("2", "tester", 1.0))
        found = await events.snapshot()
    assert (outcome.accepted, found.groups, found.quality.unexposed) == (2, {}, 0)


async def test_only_events_within_the_conversion_window_count(database_url):
    made = spec(metrics=[metric(conversion_window=hours(2))])
    async with intake(database_url, made) as events:
        await events.take(
            exposure("1", "ann", "control", 1),
            sample("2", "ann", 1.0, 3),
            sample("3", "ann", 2.0, 3.001),
        )
        found = await events.snapshot()
    assert found.cells[CONTROL].sample.observed.sum() == 1.0


async def test_a_lookback_covariate_is_what_happened_before_the_exposure(database_url):
    async with intake(database_url, spec(metrics=[cuped(lookback=hours(24))])) as events:
        outcome = await events.take(
            sample("0", "ann", 64.0, -30),
            sample("1", "ann", 32.0, -22),
            sample("2", "ann", 3.0, 0.5),
            exposure("3", "ann", "control", 1),
            sample("4", "ann", 5.0, 2),
            exposure("5", "bob", "control", 1),
        )
        found = await events.snapshot()
    assert [key[1] for key in outcome.rejected] == [pb.EVENT_REJECTION_BEFORE_START]
    observed = found.cells[CONTROL].sample.observed
    # ann: (5, 35), bob: (0, 0).
    assert (observed.n, observed.sum(0), observed.sum(1)) == (2, 5.0, 35.0)
    assert observed.comoments()[0, 1] == pytest.approx(5 * 35 - 5 * 35 / 2)


async def test_an_exposure_covariate_is_that_of_the_first_exposure(database_url):
    async with intake(database_url, spec(metrics=[cuped(exposure_covariate="age")])) as events:
        await events.take(
            exposure("1", "ann", "control", 2, covariates={"age": 7, "other": 1}),
            exposure("2", "ann", "control", 1, covariates={"age": 40}),
            sample("3", "ann", 2.0, 3),
            exposure("4", "bob", "control", 1),
            sample("5", "bob", 9.0, 3),
        )
        found = await events.snapshot()
    known, missing = found.cells[CONTROL].sample.observed, found.cells[CONTROL].sample.missing
    assert (known.n, known.sum(0), known.sum(1)) == (1, 2.0, 40.0)
    assert (missing.n, missing.sum(0)) == (1, 9.0)


async def test_caps_by_values_hold_for_units_and_not_for_events(database_url):
    made = spec(metrics=[metric(winsorization=pb.Winsorization(upper_value=5.0))])
    async with intake(database_url, made) as events:
        await events.take(exposure("1", "ann", "control"), sample("2", "ann", 4.0), sample("3", "ann", 4.0))
        assert (await events.snapshot()).cells[CONTROL].sample.observed.sum() == 5.0
        await events.take(sample("4", "ann", -6.0))
        assert (await events.snapshot()).cells[CONTROL].sample.observed.sum() == 2.0


def capped(calibration_units=100, **fields):
    caps = pb.Winsorization(upper_quantile=0.9, calibration_units=calibration_units)
    return spec(metrics=[metric(winsorization=caps, **fields)])


def exposures(count, hour=1.0):
    return [exposure(f"e{i}", f"u{i}", ["control", "tuned"][i % 2], hour) for i in range(count)]


def total(found):
    return sum(found.cells[key].sample.observed.sum() for key in (CONTROL, TUNED))


async def test_caps_by_quantiles_wait_for_enough_units_and_follow_the_data(database_url):
    async with intake(database_url, capped()) as events:
        await events.take(*exposures(99), *(sample(f"s{i}", f"u{i}", float(i)) for i in range(99)))
        early = await events.snapshot()
        assert early.calibrations == {}
        assert total(early) == sum(range(99))
        await events.take(exposure("e99", "u99", "tuned"), sample("s99", "u99", 1e6))
        found = await events.snapshot()
        # The 0.9 quantile of 0..98 and 1e6.
        assert found.calibrations["score"] == Calibration(None, 90.0, 100)
        assert total(found) == sum(range(91)) + 9 * 90
        assert found.cells[TUNED].cuts.sum(0) == 5  # 91, 93, 95, 97 and the largest
        assert found.cells[TUNED].cuts.sum(1) == 1 + 3 + 5 + 7 + 1e6 - 90
        few = [sample(f"t{i}", f"u{i}", 1000.0) for i in range(49)]
        await events.take(*few)
        assert (await events.snapshot()).calibrations == found.calibrations
        assert not (await events.recomputed()).differences
        await events.take(sample("t49", "u49", 1000.0))
        last = await events.snapshot()
        # Of 50..98, 1000..1049 and 1e6.
        assert last.calibrations["score"] == Calibration(None, 1041.0, 100)
        assert total(last) == sum(range(50, 99)) + sum(range(1000, 1042)) + 9 * 1041
        assert not (await events.recomputed()).differences


async def test_no_cap_is_a_value_that_most_have_so_far(database_url):
    """Units buy one thing at once or nothing, and more in the weeks after."""
    async with intake(database_url, capped()) as events:
        await events.take(*exposures(1000), *(sample(f"s{i}", f"u{i}", 1.0) for i in range(300)))
        first = await events.snapshot()
        assert (first.calibrations["score"], total(first)) == (Calibration(None, None, 1000), 300.0)
        await events.take(*(sample(f"t{i}", f"u{i}", float(i % 100)) for i in range(1000)))
        found = await events.snapshot()
        assert found.calibrations["score"].upper == 90.0
        assert not (await events.recomputed()).differences


async def test_caps_come_once_values_do(database_url):
    async with intake(database_url, capped()) as events:
        await events.take(*exposures(1000))
        assert (await events.snapshot()).calibrations["score"] == Calibration(None, None, 1000)
        buys = [sample(f"s{i}", f"u{i}", 20.0 + i / 1000) for i in range(400)]
        await events.take(*buys, sample("whale", "u1", 1e6, 3))
        assert (await events.snapshot()).calibrations["score"].upper == 20.301


async def test_caps_are_of_units_whose_conversion_window_is_over(database_url):
    async with intake(database_url, capped(conversion_window=hours(24))) as events:
        events.now = at(20)
        await events.take(*exposures(150), *(sample(f"s{i}", f"u{i}", float(i)) for i in range(150)))
        assert (await events.snapshot()).calibrations["score"] == Calibration(None, None, 0)
        assert await events.reexamined() == 0
        events.now = at(26)
        assert await events.reexamined() == 1
        found = await events.snapshot()
        assert found.calibrations["score"] == Calibration(None, 135.0, 150)
        assert total(found) == sum(range(136)) + 14 * 135
        assert not (await events.recomputed()).differences
        assert await events.reexamined() == 0


async def test_a_ratio_is_capped_in_both_of_its_parts(database_url):
    """Of 100 units `i` over `i + 1`, one of 1,002 over nothing, and many that have no event."""
    part = {"aggregation": pb.UNIT_AGGREGATION_SUM}
    rate = pb.RatioMetric(
        numerator=pb.EventSource(event_name="score", **part),
        denominator=pb.EventSource(event_name="visits", **part),
    )
    async with intake(database_url, capped(ratio=rate)) as events:
        await events.take(*exposures(150))
        for i in range(0, 99, 33):
            them = range(i, i + 33)
            await events.take(
                *(sample(f"s{i}", f"u{i}", float(i)) for i in them),
                *(sample(f"v{i}", f"u{i}", i + 1.0, name="visits") for i in them),
            )
        # 99 units take part; that 51 others were exposed says nothing about a ratio.
        assert (await events.snapshot()).calibrations == {}
        await events.take(
            sample("s99", "u99", 99.0),
            sample("v99", "u99", 100.0, name="visits"),
            sample("s", "u100", 1002.0),
        )
        found = await events.snapshot()
        # The 0.9 quantiles of 0..99 and 1002, and of 1..100 and 0.
        assert found.calibrations["score"] == Calibration(None, 90.0, 101, Caps(None, 90.0))
        cells = [found.cells[key] for key in (CONTROL, TUNED)]
        sums = [sum(cell.sample.observed.sum(column) for cell in cells) for column in (0, 1)]
        assert sums == [sum(range(91)) + 10 * 90, sum(range(1, 91)) + 10 * 90]
        cuts = [sum(cell.cuts.sum(column) for cell in cells) for column in range(5)]
        # u90 in its denominator, u91 to u99 in both, the last in its numerator.
        assert cuts == [11, sum(range(10)) + 912, sum(range(100)) + 1002, sum(range(11)), sum(range(101))]
        assert not (await events.recomputed()).differences


async def test_what_caps_move_is_a_share_of_at_most_all(database_url):
    """Losses that count as at least a small gain: more is moved than there was."""
    made = spec(metrics=[metric(winsorization=pb.Winsorization(lower_value=2.0))])
    async with intake(database_url, made) as events:
        await events.take(
            *exposures(3), *(sample(f"s{i}", f"u{i}", v) for i, v in enumerate((-10.0, 0.5, 8.0)))
        )
        found = await events.snapshot()
    cuts = found.cells[CONTROL].cuts + found.cells[TUNED].cuts
    # -10 becomes 2: all of the 12 is moved. 0.5 becomes 2: 1.5 of 2. 8 stays.
    assert [cuts.sum(column) for column in range(3)] == [2, 12.0 + 1.5, 12.0 + 2.0 + 8.0]


async def test_caps_of_the_largest_values_can_be_counted(database_url):
    made = spec(metrics=[metric(winsorization=pb.Winsorization(lower_value=1e300))])
    async with intake(database_url, made) as events:
        await events.take(exposure("1", "ann", "control"), sample("2", "ann", -1e20))
        assert (await events.snapshot()).cells[CONTROL].sample.observed.sum() == 1e30


async def test_caps_are_the_same_in_every_phase(database_url):
    async with intake(database_url, capped()) as events:
        await events.take(*exposures(100), *(sample(f"s{i}", f"u{i}", float(i)) for i in range(100)))
        await events.change(lambda found: found.reweighted({"control": 0.2, "tuned": 0.8}, at(10), "faster"))
        await events.take(exposure("late", "whale", "tuned", 11), sample("much", "whale", 1e6, 12))
        found = await events.snapshot()
        assert found.cells[2, "tuned", "score"].sample.observed.sum() == 90.0
        assert not (await events.recomputed()).differences


async def shown_by_day(events):
    """What was shown on each of three days, of values far larger every day."""
    shown = {}
    for day, low in ((10, 0), (11, 1000), (12, 100_000)):
        events.now = NOW + timedelta(days=day)
        new = exposures(100) if day == 10 else []
        await events.take(*new, *(sample(f"{day}-{i}", f"u{i}", float(low + i)) for i in range(100)))
        shown[events.now] = await events.snapshot()
    return shown


async def test_a_replay_has_the_caps_of_its_time(database_url):
    async with intake(database_url, capped()) as events:
        for moment, found in (await shown_by_day(events)).items():
            again = await events.as_of(moment)
            assert again.calibrations == found.calibrations
            assert total(again) == pytest.approx(total(found))


async def test_a_replay_by_the_callers_clock_has_the_caps_of_its_time(database_url):
    async with intake(database_url, capped()) as events:
        for moment, found in (await shown_by_day(events)).items():
            again = await events.as_of(moment, pb.REPLAY_CLOCK_HAPPENED)
            assert again.calibrations == found.calibrations
            # All had happened by then: every unit has far more than the first cap.
            assert total(again) >= 100 * 90
        # Before any cap was in force they are taken from what had happened: i, 1000 + i and 100,000 + i.
        first = await events.as_of(at(3), pb.REPLAY_CLOCK_HAPPENED)
        assert first.calibrations["score"] == Calibration(None, 101_000.0 + 3 * 90, 100)


async def test_caps_bear_the_time_at_which_their_units_were_read(database_url, monkeypatch):
    """A batch comes in while they wait for their turn: replays of the time before know neither."""
    async with intake(database_url, capped(conversion_window=hours(24))) as events:
        events.now = at(20)
        await events.take(*exposures(150), *(sample(f"s{i}", f"u{i}", float(i)) for i in range(150)))
        shown = {events.now: await events.snapshot()}
        hold, came = events.projections.hold, []

        @asynccontextmanager
        async def after_another(project, test_ids):
            if not came:
                came.append(True)
                events.now = at(27)
                await events.take(exposure("e", "late", "tuned", 26.5), sample("s", "late", 1e6, 26.6))
            async with hold(project, test_ids) as held:
                yield held

        monkeypatch.setattr(events.projections, "hold", after_another)
        events.now = at(26)
        assert await events.reexamined() == 1
        monkeypatch.undo()
        shown[at(27)] = await events.snapshot()
        assert shown[at(27)].calibrations["score"] == Calibration(None, 135.0, 150)
        for moment, calibrations in (
            (at(20), shown[at(20)].calibrations),
            (at(26.9), shown[at(20)].calibrations),
        ):
            assert (await events.as_of(moment)).calibrations == calibrations
        assert (await events.as_of(at(27))).calibrations == shown[at(27)].calibrations
        again = await events.as_of(at(26.9), pb.REPLAY_CLOCK_HAPPENED)
        assert again.calibrations == shown[at(20)].calibrations


async def test_what_an_earlier_version_capped_is_capped_anew(database_url):
    async with intake(database_url, capped()) as events:
        await events.take(*exposures(200), *(sample(f"s{i}", f"u{i}", float(i)) for i in range(200)))
        expected = await events.snapshot()
        await events.make_carried()
        assert (await events.snapshot()).cells[TUNED].cuts is None
        # Without further events, and with the next ones.
        assert await events.reexamined() == 1
        assert await events.snapshot() == expected
        await events.make_carried()
        await events.take(exposure("e200", "u200", "control"))
        found = await events.snapshot()
        assert found.calibrations["score"] == Calibration(None, 179.0, 201)
        assert not (await events.recomputed()).differences


async def test_what_is_stamped_shortly_before_the_exposure_counts(database_url):
    grace = specification.Duration(seconds=10)
    made = spec(metrics=[cuped(lookback=hours(1))], exposure_grace=grace)
    async with intake(database_url, made) as events:
        second = 1 / 3600
        await events.take(
            sample("1", "ann", 1.0, 1 - 10 * second),
            sample("2", "ann", 2.0, 1 - 10.001 * second),
            exposure("3", "ann", "control", 1),
        )
        # The same by an exposure that arrives after a later one.
        await events.take(exposure("4", "bob", "control", 2), sample("5", "bob", 1.0, 1 - 2 * second))
        await events.take(sample("6", "bob", 2.0, 1 - 11 * second), exposure("7", "bob", "control", 1))
        found = await events.snapshot()
        observed = found.cells[CONTROL].sample.observed
        assert (observed.n, observed.sum(0), observed.sum(1)) == (2, 2.0, 4.0)
        assert found.uses == {(1, "control", "score"): Uses(4, early_units=2)}
        assert not (await events.recomputed()).differences


async def test_the_grace_holds_at_the_start(database_url):
    grace = specification.Duration(seconds=10)
    async with intake(database_url, spec(metrics=[cuped(lookback=hours(1))], exposure_grace=grace)) as events:
        second = 1 / 3600
        outcome = await events.take(
            exposure("1", "ann", "control", -9 * second),
            sample("2", "ann", 1.0, -10 * second),
            exposure("3", "bob", "control", 0),
            sample("4", "bob", 2.0, -10 * second),
            exposure("5", "eve", "control", -11 * second),
            sample("6", "eve", 4.0, -1 - 9 * second),
        )
        found = await events.snapshot()
    assert [each.event_ids for each in outcome.rejected.values()] == [("5",)]
    assert found.rejected_exposures == {"control": 1}
    assert (found.cells[CONTROL].sample.observed.n, found.cells[CONTROL].sample.observed.sum()) == (2, 3.0)


async def test_every_accepted_event_that_no_metric_counts_is_counted(database_url):
    windowed = metric(conversion_window=hours(2), cuped=pb.Cuped(lookback=hours(1)))
    longer = metric("other", mean=pb.MeanMetric(source=pb.EventSource(event_name="score")))
    longer.conversion_window.CopyFrom(hours(3))
    made = spec(metrics=[windowed, longer], overrides={"tester": "tuned"})
    async with intake(database_url, made) as events:
        await events.take(
            sample("1", "ann", 1.0, 2.5),  # read as a covariate
            sample("2", "ann", 1.0, 0.5),  # before
            exposure("3", "ann", "control", 3),
            sample("4", "ann", 1.0, 5.5),  # in one of the windows
            sample("5", "ann", 1.0, 7.0),  # after both
            sample("6", "tester", 1.0),
            sample("7", "eve", 1.0),
        )
        found = await events.snapshot()
        assert found.uses == {(1, "control", "score"): Uses(4, 1, before_exposure=1, after_window=1)}
        assert (found.quality.overridden, found.quality.unexposed) == (1, 1)
        await events.take(exposure("8", "eve", "tuned", 3), exposure("9", "ann", "tuned", 2))
        found = await events.snapshot()
        assert found.uses == {
            (1, "tuned", "score"): Uses(5, early_units=2, before_exposure=1, after_window=2),
        }
        assert not (await events.recomputed()).differences


async def test_judgements_of_both_orders_are_wins_losses_ties_or_missing(database_url):
    async with intake(database_url, better()) as events:
        await events.take(
            judgement("1", "a", CANDIDATE, CANDIDATE),
            judgement("2", "b", BASELINE, BASELINE),
            judgement("3", "c", BASELINE, CANDIDATE),
            judgement("4", "d", TIE, CANDIDATE),
            judgement("5", "e", CANDIDATE, 0),
            # The other way round: its baseline is the treatment, which wins.
            judgement(
                "6", "f", BASELINE, BASELINE, baseline_variant_id="tuned", candidate_variant_id="control"
            ),
        )
        found = await events.snapshot()
    assert found.tallies == {(1, "control", "tuned", "better"): Judgements(2, 2, 1, 1, 1)}


async def test_judgements_of_two_treatments_are_counted_as_events(database_url):
    """However many there are of a prompt, and however many metrics read them."""
    names = ("control", "tuned", "other")
    twice = [metric(each, pairwise=pb.PairwiseMetric(event_name="better")) for each in ("one", "two")]
    made = spec(
        variants=[pb.ExperimentVariant(variant_id=each, weight=1 / 3) for each in names],
        metrics=[metric(), *twice],
        overrides={"tester": "tuned"},
    )
    pair = {"baseline_variant_id": "tuned", "candidate_variant_id": "other"}
    async with intake(database_url, made) as events:
        await events.take(judgement("1", "a", CANDIDATE, CANDIDATE, **pair), exposure("2", "ann", "control"))
        await events.take(
            judgement("3", "a", BASELINE, BASELINE, **pair),
            judgement("4", "b", CANDIDATE, 0, **pair),
            judgement("5", "b", CANDIDATE, CANDIDATE),
            judgement("6", "tester", CANDIDATE, CANDIDATE, **pair),
        )
        assert (await events.snapshot()).between == {1: 3}
        assert not (await events.recomputed()).differences
        # What an earlier version did not count is counted with the next event.
        await events.make_carried()
        await events.take(judgement("7", "c", TIE, TIE, **pair), sample("8", "ann", 1.0))
        found = await events.snapshot()
        assert found.between == {1: 4}
        assert found.timings[1, "control", "score"].n == 1
        assert not (await events.recomputed()).differences


async def test_several_judgements_of_a_prompt_count_as_one(database_url):
    async with intake(database_url, better()) as events:
        await events.take(judgement("1", "a", CANDIDATE, CANDIDATE, judge="one"))
        await events.take(judgement("2", "a", BASELINE, BASELINE, judge="two"))
        assert (await events.snapshot()).tallies == {
            (1, "control", "tuned", "better"): Judgements(0, 1, 0, 0, 0)
        }
        await events.take(judgement("3", "a", CANDIDATE, CANDIDATE, judge="three"))
        found = await events.snapshot()
    assert found.tallies == {(1, "control", "tuned", "better"): Judgements(1, 0, 0, 0, 0)}


async def test_a_transaction_that_fails_leaves_no_trace(database_url):
    async with intake(database_url) as events:
        await events.take(exposure("1", "ann", "control"))
        before = await events.snapshot()
        async with events.database.write() as connection:
            await connection.execute(text("DROP TABLE cells"))
        with pytest.raises(Exception, match="cells"):
            await events.take(sample("2", "ann", 1.0))
        async with events.database.read() as connection:
            queries = {name: f"SELECT count(*) FROM {name}" for name in ("event_batches", "totals")}
            counts = {name: await connection.scalar(text(query)) for name, query in queries.items()}
        # Nor in memory: it is not taken for a duplicate when it comes again.
        async with events.database.write() as connection:
            await connection.run_sync(tables.cells.create)
        assert (await events.take(sample("2", "ann", 1.0))).accepted == 1
    assert before.quality.accepted == 1
    assert counts == {"event_batches": 1, "totals": 1}


def test_the_instant_at_which_a_phase_begins_belongs_to_it():
    halves = {"control": 0.5, "tuned": 0.5}
    made = experiment(phases=[halves, {"control": 0.1, "tuned": 0.9}])
    first, second = (microseconds(phase.start_time) for phase in made.phases)
    phase, is_over = phases_then(made, np.array([first - 1, first, second - 1, second]))
    assert phase.tolist() == [0, 1, 1, 2]
    assert is_over.tolist() == [False, True, True, False]
