"""What the times of events say of a comparison."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiment.figures import experiment, guardrail, lower, metric, normal, reported, snapshot
from neuroweaver.experiment.analysis import report as reporting
from neuroweaver.experiment.analysis import timing
from neuroweaver.experiment.domain.snapshot import Group, Uses
from neuroweaver.experiment.domain.specification import Duration
from neuroweaver.statistics.moments import Moments
from neuroweaver.v1 import experiment_pb2 as pb

HOUR = Duration(seconds=3600)
UNITS = 2000
AFTER_WINDOW = pb.VERDICT_BLOCKER_EVENTS_AFTER_WINDOW


def blockers(results):
    return {gap.blocker for gap in results.verdict.gaps}


def notices(results, reason):
    return [each.message for each in results.notices if each.reason == reason]


def timings(kept, since, before=0.0, units=UNITS, seed=1):
    """kept: the share of events in the window, of those since the exposure; since, before: events a unit."""
    drawn = np.random.default_rng(seed)
    all_since = drawn.poisson(since, units)
    none = np.zeros(units)
    early = drawn.poisson(before, units)
    within = drawn.binomial(all_since, kept)
    rows = np.stack((early, all_since, none, none, none, early, within), 1)
    return Moments.of(rows.astype(float))


def windowed(control, tuned, values=(10, 10.5), **fields):
    made = experiment(metrics=[metric(conversion_window=HOUR)], **fields)
    found = snapshot(
        {
            "control": {"score": normal(UNITS, values[0], 1)},
            "tuned": {"score": normal(UNITS, values[1], 2)},
        }
    )
    moments = {(1, "control", "score"): control, (1, "tuned", "score"): tuned}
    return reported(made, replace(found, timings=moments)).results


@pytest.mark.parametrize(("of_control", "of_tuned"), [(0.9, 0.45), (0.45, 0.9), (1.0, 0.0), (0.0, 1.0)])
def test_a_variant_with_far_less_of_its_events_in_the_window_blocks_the_verdict(of_control, of_tuned) -> None:
    results = windowed(timings(of_control, 2), timings(of_tuned, 2, seed=2))
    assert blockers(results) == {AFTER_WINDOW}
    (message,) = notices(results, "EVENTS_AFTER_WINDOW")
    assert message == results.verdict.reason
    assert "conversion window of 3,600 s" in message
    assert results.verdict.gaps[0].metric_id == "score"


def test_a_treatment_that_makes_events_come_later_is_noted_and_judged() -> None:
    results = windowed(timings(0.9, 2), timings(0.75, 2, seed=2))
    assert results.verdict.decision == pb.DECISION_SHIP
    (message,) = notices(results, "EVENTS_AFTER_WINDOW")
    assert "make sure which" in message


def test_shares_that_few_events_explain_say_nothing() -> None:
    results = windowed(timings(0.9, 0.01), timings(0.6, 0.01, seed=2))
    assert results.verdict.decision == pb.DECISION_SHIP
    assert not notices(results, "EVENTS_AFTER_WINDOW")


def test_a_comparison_that_all_events_would_turn_round_is_blocked() -> None:
    """A fifth more events in all, and an eighth of them lost to the window alone."""
    results = windowed(timings(0.95, 3), timings(0.75, 3.6, seed=2), values=(10, 9.5))
    assert blockers(results) == {AFTER_WINDOW}
    # As many in all, only later: that is what the window is there for.
    results = windowed(timings(0.95, 3), timings(0.75, 3, seed=2), values=(10, 9.5))
    assert results.verdict.decision == pb.DECISION_KEEP


def test_units_that_come_back_more_often_after_the_window_are_noted_and_judged() -> None:
    results = windowed(timings(0.5, 2), timings(0.25, 4, seed=2))
    assert results.verdict.decision == pb.DECISION_SHIP
    assert any("make sure which" in message for message in notices(results, "EVENTS_AFTER_WINDOW"))


def test_a_window_that_leaves_out_most_events_of_all_variants_is_noted() -> None:
    results = windowed(timings(0.2, 2), timings(0.2, 2, seed=2))
    assert results.verdict.decision == pb.DECISION_SHIP
    (message,) = notices(results, "EVENTS_AFTER_WINDOW")
    assert message.startswith(("80.", "79."))
    assert not notices(windowed(timings(0.6, 2), timings(0.6, 2, seed=2)), "EVENTS_AFTER_WINDOW")


def test_nothing_is_said_to_be_as_often_that_was_not_compared() -> None:
    values = {"control": {"score": normal(40, 10, 1)}, "tuned": {"score": normal(40, 10, 2)}}
    uses = dict.fromkeys([(1, "control", "score"), (1, "tuned", "score")], Uses(100, rejected_units=30))
    results = reported(experiment(), replace(snapshot(values), uses=uses)).results
    (message,) = notices(results, "EVENTS_REJECTED")
    assert "as often" not in message
    assert "cannot be compared yet" in message


def test_a_window_of_one_metric_says_nothing_of_another() -> None:
    shorter = metric("soon", conversion_window=HOUR, mean=pb.MeanMetric(source=source("score")))
    made = experiment(metrics=[metric(), shorter])
    values = {
        "control": {"score": normal(UNITS, 10, 1), "soon": normal(UNITS, 10, 1)},
        "tuned": {"score": normal(UNITS, 10.5, 2), "soon": normal(UNITS, 8, 2)},
    }
    moments = {(1, "control", "score"): timings(0.9, 2), (1, "tuned", "score"): timings(0.4, 2, seed=2)}
    results = reported(made, replace(snapshot(values), timings=moments)).results
    assert results.verdict.decision == pb.DECISION_SHIP
    assert notices(results, "EVENTS_AFTER_WINDOW")
    made = experiment(metrics=[shorter, metric()])
    assert blockers(reported(made, replace(snapshot(values), timings=moments)).results) == {AFTER_WINDOW}


def source(name):
    return pb.EventSource(event_name=name)


def test_more_early_events_of_as_many_units_block_the_verdict() -> None:
    """Everybody has events from before: that one clock lags shows in how many."""
    results = windowed(timings(1, 5, before=3), timings(1, 4, before=4, seed=2))
    assert blockers(results) == {pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE}
    assert " a unit)" in results.verdict.reason
    results = windowed(timings(1, 5, before=3), timings(1, 5, before=3, seed=2))
    assert results.verdict.decision == pb.DECISION_SHIP


def with_uses(control, tuned, units=UNITS, **fields):
    values = {"control": {"score": normal(units, 10, 1)}, "tuned": {"score": normal(units, 10.5, 2)}}
    uses = {(1, "control", "score"): control, (1, "tuned", "score"): tuned}
    moments = {(1, "control", "score"): timings(1, 2), (1, "tuned", "score"): timings(1, 2, seed=2)}
    return reported(experiment(**fields), replace(snapshot(values), uses=uses, timings=moments))


def test_rejections_that_differ_block_the_verdict_and_others_are_noted() -> None:
    results = with_uses(Uses(4000, rejected_units=10), Uses(4000, rejected_units=400)).results
    assert blockers(results) == {pb.VERDICT_BLOCKER_EVENTS_REJECTED}
    assert "20.00% of the units of tuned have score events that were rejected" in results.verdict.reason
    results = with_uses(Uses(4000, rejected_units=390), Uses(4000, rejected_units=400)).results
    assert results.verdict.decision == pb.DECISION_SHIP
    (message,) = notices(results, "EVENTS_REJECTED")
    assert "19.8% of the units" in message
    results = with_uses(Uses(4000, rejected_units=9), Uses(4000, rejected_units=11)).results
    assert not notices(results, "EVENTS_REJECTED")


def test_a_metric_most_of_whose_events_are_rejected_has_no_verdict() -> None:
    results = with_uses(Uses(900, rejected_units=1000), Uses(900, rejected_units=1000)).results
    assert blockers(results) == {pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE}


def test_a_few_early_events_hold_no_ramp() -> None:
    for early, is_held in ((1, False), (49, False), (50, True)):
        uses = Uses(early, early, early)
        found = with_uses(uses, uses)
        assert found.is_held == is_held
        assert bool(notices(found.results, "EVENTS_BEFORE_EXPOSURE")), early


def test_units_that_are_exposed_late_in_all_variants_alike_are_noted() -> None:
    results = with_uses(Uses(4000, 1500, 1900), Uses(4000, 1520, 1950)).results
    assert results.verdict.decision == pb.DECISION_SHIP
    (message,) = notices(results, "EVENTS_BEFORE_EXPOSURE")
    assert "as often in every variant" in message


def test_a_split_that_rejected_exposures_explain_says_so() -> None:
    made = experiment()
    found = replace(
        snapshot({"control": {"score": normal(2000, 10, 1)}, "tuned": {"score": normal(1500, 10, 2)}}),
        rejected_exposures={"tuned": 500},
    )
    results = reported(made, found).results
    assert results.verdict.gaps[0].blocker == pb.VERDICT_BLOCKER_SAMPLE_RATIO
    assert "0 of control, 500 of tuned" in results.verdict.gaps[0].message
    assert notices(results, "EXPOSURES_REJECTED")
    few = replace(found, groups={key: Group(2000) for key in found.groups}, rejected_exposures={"tuned": 20})
    assert not notices(reported(made, few).results, "EXPOSURES_REJECTED")


def test_times_are_examined_once_for_a_report(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(reporting, "faults", lambda study: calls.append(study) or timing.faults(study))
    rails = [guardrail(name, relative=0.01) for name in ("slow", "dear")]
    made = experiment(metrics=[metric(), lower("slow"), lower("dear")], guardrails=rails)
    values = {
        variant: {"score": normal(2000, 10, 1), "slow": normal(2000, mean, 2), "dear": normal(2000, mean, 3)}
        for variant, mean in (("control", 10), ("tuned", 12))
    }
    assert len(reported(made, snapshot(values)).breaches) == 2
    assert len(calls) == 1
