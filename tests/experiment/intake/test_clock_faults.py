"""Clocks of one variant that are off by seconds or days, wherever that takes events out of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import numpy as np
import pytest

from experiment.ingesting import PROJECT, START, exposure, intake, sample
from experiment.serving import metric, spec
from neuroweaver.experiment.analysis.report import report
from neuroweaver.experiment.domain.snapshot import Uses
from neuroweaver.experiment.domain.specification import Duration
from neuroweaver.experiment.intake import raw_events, retention
from neuroweaver.experiment.intake.ingestion import FUTURE
from neuroweaver.v1 import experiment_pb2 as pb

UNITS = 600
DAY = 24.0
VARIANTS = ("control", "tuned")
SUMMED = pb.EventSource(event_name="score", aggregation=pb.UNIT_AGGREGATION_SUM)


@dataclass(frozen=True)
class History:
    """Hours, all. lookback: CUPED's. span: in which units are exposed, from the start on. events: per unit of each variant after the
    exposure, `delay` after it on average. earlier: events per unit within `before` hours before the exposure.
    samples, exposures: by how much their clocks are ahead in each variant. now: since the start.
    """

    span: float = 72.0
    delay: float = 2.0
    events: Mapping[str, float] = field(default_factory=lambda: {"control": 2.0, "tuned": 3.0})
    earlier: float = 0.0
    before: float = 24.0
    window: float | None = None
    lookback: float | None = None
    samples: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(VARIANTS, 0.0))
    exposures: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(VARIANTS, 0.0))
    delays: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(VARIANTS, 1.0))
    now: float = 240.0

    def spec(self) -> pb.ExperimentSpec:
        counted = metric(count=pb.CountMetric(event_name="score"))
        if self.window is not None:
            counted.conversion_window.CopyFrom(Duration(seconds=max(1, round(self.window * 3600))))
        if self.lookback is not None:
            counted.cuped.CopyFrom(pb.Cuped(lookback=Duration(seconds=round(self.lookback * 3600))))
        return spec(metrics=[counted], min_units_per_variant=100, exposure_grace=Duration(seconds=10))

    def happened(self, seed: int) -> Sequence[pb.ExperimentEvent]:
        drawn = np.random.default_rng(seed)
        events = []
        for unit in range(UNITS):
            variant = VARIANTS[unit % 2]
            shown = drawn.uniform(0, self.span)
            events.append(exposure(f"e{unit}", f"u{unit}", variant, shown + self.exposures[variant]))
            count = drawn.poisson(self.events[variant])
            after = drawn.exponential(self.delay * self.delays[variant], count)
            before = -drawn.uniform(0, self.before, drawn.poisson(self.earlier))
            for number, hours in enumerate([*before, *after]):
                if shown + hours <= self.now:
                    at = shown + hours + self.samples[variant]
                    events.append(sample(f"s{unit}-{number}", f"u{unit}", 1.0, at))
        return [events[place] for place in drawn.permutation(len(events))]


async def results_of(tmp_path, history: History, seed: int = 1) -> pb.ExperimentResults:
    async with intake(f"sqlite:///{tmp_path}/clocks.db", history.spec()) as events:
        events.now = START + timedelta(hours=history.now)
        told = history.happened(seed)
        for start in range(0, len(told), 1000):
            await events.take(*told[start : start + 1000])
        assert not (await events.recomputed()).differences
        found = report(await events.experiment(), await events.snapshot(), now=events.now)
    return found.results


def off(**hours: float) -> Mapping[str, float]:
    return dict.fromkeys(VARIANTS, 0.0) | hours


def blockers(results):
    return {gap.blocker for gap in results.verdict.gaps} & {
        pb.VERDICT_BLOCKER_SAMPLE_RATIO,
        pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE,
        pb.VERDICT_BLOCKER_EVENTS_REJECTED,
        pb.VERDICT_BLOCKER_EVENTS_AFTER_WINDOW,
    }


def reasons(results):
    return {notice.reason for notice in results.notices}


def is_wrong(results, history):
    """Whether the verdict goes against what happened."""
    is_better = history.events["tuned"] > history.events["control"]
    return results.verdict.decision == (pb.DECISION_KEEP if is_better else pb.DECISION_SHIP)


AHEAD, OLD = FUTURE.total_seconds() / 3600 + 5 * DAY, -200 * DAY


@pytest.mark.parametrize(
    ("variant", "late_by"), [("tuned", -5.0), ("control", -3 * DAY), ("tuned", OLD), ("control", AHEAD)]
)
async def test_samples_of_one_variant_that_are_rejected_block_the_verdict(tmp_path, variant, late_by):
    history = History(span=4, delay=0.3, samples=off(**{variant: late_by}), now=48)
    results = await results_of(tmp_path, history)
    assert results.verdict.decision == pb.DECISION_INCONCLUSIVE
    assert pb.VERDICT_BLOCKER_EVENTS_REJECTED in blockers(results)
    assert "EVENTS_REJECTED" in reasons(results)


async def test_samples_of_all_variants_that_are_rejected_are_noted(tmp_path):
    """A history from before the start, or clocks that lag alike."""
    results = await results_of(tmp_path, History(earlier=0.5, before=48))
    assert results.verdict.decision == pb.DECISION_SHIP
    assert {"EVENTS_REJECTED", "EVENTS_BEFORE_EXPOSURE"} <= reasons(results)


async def test_clocks_that_all_lag_so_far_that_most_samples_are_lost_block_the_verdict(tmp_path):
    history = History(span=4, delay=5, samples=dict.fromkeys(VARIANTS, -12.0))
    results = await results_of(tmp_path, history)
    assert pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE in blockers(results)


@pytest.mark.parametrize("late_by", [-5.0, 20 * DAY])
async def test_exposures_of_one_variant_that_are_rejected_are_said_to_be(tmp_path, late_by):
    events = {"control": 2.0, "tuned": 2.0}
    history = History(span=12, events=events, exposures=off(tuned=late_by), now=48)
    results = await results_of(tmp_path, history)
    assert pb.VERDICT_BLOCKER_SAMPLE_RATIO in blockers(results)
    assert "of tuned" in results.verdict.gaps[0].message
    assert "rejected for their times" in results.verdict.gaps[0].message
    (notice,) = (each for each in results.notices if each.reason == "EXPOSURES_REJECTED")
    assert "0 of control" in notice.message


@pytest.mark.parametrize(("variant", "window"), [("tuned", 1.0), ("control", DAY)])
async def test_samples_of_one_variant_stamped_after_the_window_block_the_verdict(tmp_path, variant, window):
    history = History(delay=0.3, window=window, samples=off(**{variant: window}))
    results = await results_of(tmp_path, history)
    assert results.verdict.decision == pb.DECISION_INCONCLUSIVE
    assert blockers(results) == {pb.VERDICT_BLOCKER_EVENTS_AFTER_WINDOW}
    assert "EVENTS_AFTER_WINDOW" in reasons(results)


async def test_a_long_history_hides_no_clock_that_lags(tmp_path):
    """Nearly every unit has events from before its exposure, and some have many."""
    few = {"control": 1.0, "tuned": 1.5}
    history = History(
        delay=0.3, events=few, earlier=20, before=6 * DAY, lookback=7 * DAY, samples=off(tuned=-2.0)
    )
    results = await results_of(tmp_path, history)
    assert results.verdict.decision == pb.DECISION_INCONCLUSIVE
    assert pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE in blockers(results)
    sound = replace(history, samples=off())
    (tmp_path / "sound").mkdir()
    results = await results_of(tmp_path / "sound", sound)
    assert results.verdict.decision == pb.DECISION_SHIP


async def test_a_history_that_is_rejected_hides_no_rejected_samples(tmp_path):
    """Each unit has rejected samples: that one clock lags shows in how many."""
    history = History(span=0.1, earlier=5, before=48, delay=4, samples=off(tuned=-DAY / 2))
    results = await results_of(tmp_path, history)
    assert pb.VERDICT_BLOCKER_EVENTS_REJECTED in blockers(results)
    assert " a unit)" in next(each.message for each in results.notices if each.reason == "EVENTS_REJECTED")


async def test_values_of_early_events_and_within_a_window_are_compared_too(tmp_path):
    """One large sample of a unit, which the clock takes out of the comparison, among many small ones."""
    for place, (hour, fields) in enumerate(
        (
            (0.01, {"cuped": pb.Cuped(lookback=Duration(seconds=7 * 86400))}),
            (23.9, {"conversion_window": Duration(seconds=86400)}),
        )
    ):
        counted = metric(mean=pb.MeanMetric(source=SUMMED), **fields)
        drawn, told = np.random.default_rng(1), []
        for unit in range(UNITS):
            variant, shown = VARIANTS[unit % 2], drawn.uniform(24, 72)
            off_by = (0.0, -1.0 if hour < 1 else 1.0)[unit % 2]
            told.append(exposure(f"e{unit}", f"u{unit}", variant, shown))
            told.append(sample(f"l{unit}", f"u{unit}", 30.0 + drawn.normal(), shown + hour + off_by))
            small = drawn.uniform(-160 if hour < 1 else 0, 20, 10)
            told += [sample(f"s{unit}-{at}", f"u{unit}", 1.0, shown + at + off_by) for at in small.tolist()]
        made = spec(metrics=[counted], min_units_per_variant=100, exposure_grace=Duration(seconds=10))
        async with intake(f"sqlite:///{tmp_path}/{place}.db", made) as events:
            for start in range(0, len(told), 1000):
                await events.take(*told[start : start + 1000])
            assert not (await events.recomputed()).differences
            results = report(await events.experiment(), await events.snapshot(), now=events.now).results
        expected = (pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE, pb.VERDICT_BLOCKER_EVENTS_AFTER_WINDOW)[place]
        assert blockers(results) == {expected}


@pytest.mark.parametrize("slower", [0.8, 1.25])
async def test_a_treatment_that_makes_events_come_sooner_or_later_has_a_verdict(tmp_path, slower):
    history = History(delay=6, window=DAY / 2, delays={"control": 1.0, "tuned": slower})
    results = await results_of(tmp_path, history)
    assert results.verdict.decision == pb.DECISION_SHIP
    assert not blockers(results)


def drawn_history(seed: int) -> History:
    """Half again as many events or two thirds, with clocks off by two seconds to six days."""
    drawn = np.random.default_rng(seed)

    def between(low, high):
        return float(np.exp(drawn.uniform(np.log(low), np.log(high))))

    def some_hours():
        return float(drawn.choice([-1, 1])) * between(2 / 3600, 6 * DAY)

    span, rate = between(1, 150), float(drawn.choice([0.3, 1, 3]))
    faulty = [str(drawn.choice(VARIANTS))] if drawn.random() < 0.75 else VARIANTS
    return History(
        span=span,
        delay=between(0.05, 48),
        events={"control": rate, "tuned": rate * float(drawn.choice([1.5, 1 / 1.5]))},
        earlier=float(drawn.choice([0, 0.5, 2, 10])),
        before=float(drawn.choice([6, 24, 96, 336])),
        window=between(1 / 6, 120) if drawn.random() < 0.67 else None,
        lookback=float(drawn.choice([24, 168])) if drawn.random() < 0.5 else None,
        samples=off(**{each: some_hours() for each in faulty}),
        exposures=off(**{str(drawn.choice(VARIANTS)): some_hours()}) if drawn.random() < 0.25 else off(),
        now=span + float(drawn.choice([1, 24, 120])),
    )


@pytest.mark.parametrize("seed", range(8))
async def test_no_verdict_goes_the_wrong_way_whatever_the_clocks(tmp_path, seed):
    history = drawn_history(seed)
    assert not is_wrong(await results_of(tmp_path, history, seed), history)


async def test_a_rejected_sample_counts_once_and_may_come_again_with_its_time_put_right(database_url):
    history = History(window=1.0)
    async with intake(database_url, history.spec()) as events:
        for _ in range(3):
            outcome = await events.take(
                sample("1", "ann", 1.0, -5), sample("2", "ann", 1.0, -6), sample("3", "bob", 1.0, -5)
            )
            assert (outcome.accepted, outcome.duplicates) == (0, 0)
            assert [each.count for each in outcome.rejected.values()] == [3]
        # As a process that begins anew; the exposure comes after what it is of.
        events.reopen(lambda: events.now)
        await events.take(exposure("4", "ann", "control"), exposure("5", "eve", "tuned"))
        assert (await events.take(sample("1", "ann", 1.0, 1.5))).accepted == 1
        found = await events.snapshot()
        assert found.uses == {(1, "control", "score"): Uses(events=1, rejected_units=1)}
        assert found.quality.accepted == 3
        assert found.timings[1, "control", "score"].to_floats()[:8] == [1, 0, 1, 2, 0, 0, 0, 1]
        recomputed = await events.recomputed()
        assert (recomputed.events, recomputed.differences) == (3, [])
        async with events.database.read() as connection:
            kept = await raw_events.until(connection, PROJECT, "t")
    assert sum(len(batch) for _, batch in kept) == 6


async def test_a_checkpoint_knows_which_units_had_samples_rejected(database_url):
    async with intake(database_url, History().spec()) as events:
        await events.take(exposure("1", "ann", "control"), sample("2", "ann", 1.0, -5))
        await retention.keep_checkpoint(
            events.store, events.projections, await events.experiment(), is_forced=True
        )
        events.reopen(lambda: events.now)
        await events.take(exposure("3", "ann", "tuned", 0.5))
        found = await events.snapshot()
        assert found.uses == {(1, "tuned", "score"): Uses(rejected_units=1)}
        assert not (await events.recomputed()).differences


async def test_a_rejected_sample_of_an_unknown_name_or_an_overridden_unit_leaves_no_note(database_url):
    made = History().spec()
    made.overrides["tester"] = "tuned"
    async with intake(database_url, made) as events:
        await events.take(sample("1", "ann", 1.0, -5, "other"), sample("2", "tester", 1.0, -5))
        async with events.database.read() as connection:
            assert not await raw_events.until(connection, PROJECT, "t")
