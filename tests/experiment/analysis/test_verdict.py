from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiment.figures import (
    experiment,
    guardrail,
    lower,
    metric,
    no_worse,
    normal,
    reported,
    snapshot,
    superior,
    verdict_of,
)
from neuroweaver.experiment.analysis.study import study
from neuroweaver.experiment.analysis.verdict import judge
from neuroweaver.experiment.domain.model import Experiment, Ramp
from neuroweaver.experiment.domain.snapshot import Cell, Snapshot
from neuroweaver.statistics.arm import Sample
from neuroweaver.statistics.moments import Moments
from neuroweaver.v1 import experiment_pb2 as pb

SHIP, KEEP, INCONCLUSIVE = pb.DECISION_SHIP, pb.DECISION_KEEP, pb.DECISION_INCONCLUSIVE

QUALITY, COST, LATENCY = metric("quality"), lower("cost"), lower("latency")


def two(units: int = 2000, **shifts: float) -> Snapshot:
    """Control around 10 with a standard deviation of 1; the treatment shifted by so much on each metric."""
    return many({"tuned": shifts}, units)


def many(treatments: dict[str, dict[str, float]], units: int = 2000) -> Snapshot:
    metrics = list(next(iter(treatments.values())))
    variants = {"control": {each: normal(units, 10, index) for index, each in enumerate(metrics)}}
    for number, (name, shifts) in enumerate(treatments.items(), 1):
        variants[name] = {
            each: normal(units, 10 + shifts[each], 100 * number + index) for index, each in enumerate(metrics)
        }
    return snapshot(variants)


def gaps(verdict: pb.ExperimentVerdict) -> set[tuple[str, str, str]]:
    name = pb.VerdictBlocker.Name
    return {
        (name(each.blocker).removeprefix("VERDICT_BLOCKER_"), each.variant_id, each.metric_id)
        for each in verdict.gaps
    }


def test_a_treatment_that_is_better_is_shipped() -> None:
    verdict = verdict_of(experiment(), two(score=0.3))
    assert (verdict.decision, verdict.variant_id) == (SHIP, "tuned")
    assert not verdict.gaps
    assert not verdict.HasField("forecast")
    assert "tuned meets the decision rule" in verdict.reason
    (criterion,) = verdict.criteria
    assert criterion.is_met
    assert criterion.adjusted_p_value < 0.05


def test_a_treatment_that_is_worse_keeps_the_control() -> None:
    verdict = verdict_of(experiment(), two(score=-0.3))
    assert (verdict.decision, verdict.variant_id) == (KEEP, "control")
    assert verdict.criteria[0].is_failed


def test_less_is_better_where_the_goal_says_so() -> None:
    made = experiment(metrics=[COST])
    assert verdict_of(made, two(cost=-0.3)).decision == SHIP
    assert verdict_of(made, two(cost=0.3)).decision == KEEP


def test_an_effect_that_cannot_be_told_is_inconclusive() -> None:
    verdict = verdict_of(experiment(), two(score=0.02))
    assert verdict.decision == INCONCLUSIVE
    assert verdict.variant_id == ""
    assert gaps(verdict) == {("UNCERTAIN", "tuned", "")}


def test_a_margin_of_superiority_must_be_exceeded() -> None:
    def decided(**size: float) -> pb.Decision.ValueType:
        rule = pb.DecisionRule(all_of=[superior(**size)])
        return verdict_of(experiment(decision_rule=rule), two(score=0.5)).decision

    assert decided(absolute=0.2) == SHIP
    assert decided(relative=0.02) == SHIP  # of 10
    assert decided(absolute=0.5) == INCONCLUSIVE
    assert decided(absolute=0.8) == KEEP
    assert decided(relative=0.08) == KEEP


def test_before_the_minimum_of_units_there_is_no_verdict() -> None:
    verdict = verdict_of(experiment(min_units_per_variant=2500), two(score=-5))
    assert verdict.decision == INCONCLUSIVE
    assert gaps(verdict) == {("MINIMUM_SAMPLE", "control", ""), ("MINIMUM_SAMPLE", "tuned", "")}
    assert {each.missing_units for each in verdict.gaps} == {500}


def test_a_fixed_horizon_waits_for_the_planned_sample() -> None:
    fields: dict[str, Any] = {"verdict_method": pb.INFERENCE_METHOD_FIXED_HORIZON}
    early = experiment(planned_units_per_variant=3000, **fields)
    assert {each[0] for each in gaps(verdict_of(early, two(score=1)))} == {"HORIZON"}
    there = experiment(planned_units_per_variant=2000, **fields)
    assert verdict_of(there, two(score=1)).decision == SHIP


def test_a_broken_split_blocks_the_verdict() -> None:
    values = {"control": {"score": normal(5000, 10, 1)}, "tuned": {"score": normal(5600, 11, 2)}}
    verdict = verdict_of(experiment(), snapshot(values))
    assert verdict.decision == INCONCLUSIVE
    assert gaps(verdict) == {("SAMPLE_RATIO", "", "")}
    assert not verdict.HasField("forecast")


def test_a_metric_of_the_rule_without_data_is_waited_for() -> None:
    made = experiment(metrics=[QUALITY, COST], guardrails=[guardrail("cost", absolute=1)])
    verdict = verdict_of(made, two(quality=1))
    assert verdict.decision == INCONCLUSIVE
    assert gaps(verdict) == {("MISSING_METRIC", "tuned", "cost")}
    # What is known to fail needs nothing more.
    assert verdict_of(made, two(quality=-1)).decision == KEEP


def test_a_guardrail_must_hold_on_top_of_the_rule() -> None:
    made = experiment(metrics=[QUALITY, COST], guardrails=[guardrail("cost", absolute=0.2)])
    assert verdict_of(made, two(quality=0.5, cost=0.0)).decision == SHIP
    assert verdict_of(made, two(quality=0.5, cost=0.2)).decision == INCONCLUSIVE
    breached = verdict_of(made, two(quality=0.5, cost=0.5))
    assert breached.decision == KEEP
    assert [each.is_failed for each in breached.criteria if each.is_guardrail] == [True]


def test_one_alternative_is_enough() -> None:
    rule = pb.DecisionRule(
        all_of=[no_worse("quality", absolute=0.2)], any_of=[superior("cost"), superior("latency")]
    )
    made = experiment(metrics=[QUALITY, COST, LATENCY], decision_rule=rule)
    assert verdict_of(made, two(quality=0, cost=-0.5, latency=0)).decision == SHIP
    assert verdict_of(made, two(quality=0, cost=0, latency=-0.5)).decision == SHIP
    assert verdict_of(made, two(quality=0, cost=0.5, latency=0)).decision == INCONCLUSIVE
    assert verdict_of(made, two(quality=0, cost=0.5, latency=0.5)).decision == KEEP
    assert verdict_of(made, two(quality=-0.5, cost=-0.5, latency=0)).decision == KEEP


def test_alternatives_share_the_level_and_conjuncts_do_not() -> None:
    def p(rule: pb.DecisionRule) -> float:
        made = experiment(metrics=[QUALITY, COST], decision_rule=rule)
        return verdict_of(made, two(quality=0.1, cost=0.0)).criteria[0].adjusted_p_value

    alone = p(pb.DecisionRule(all_of=[superior("quality")]))
    assert alone < 0.5
    assert p(pb.DecisionRule(all_of=[superior("quality"), superior("cost")])) == alone
    assert p(pb.DecisionRule(any_of=[superior("quality"), superior("cost")])) == pytest.approx(2 * alone)


def test_treatments_share_the_level_step_by_step() -> None:
    fixed = {"verdict_method": pb.INFERENCE_METHOD_FIXED_HORIZON}

    def result(a: float, b: float) -> tuple[pb.ExperimentVerdict, list[float]]:
        found = many({"a": {"score": a}, "b": {"score": b}})
        verdict = verdict_of(
            experiment({"control": 1 / 3, "a": 1 / 3, "b": 1 / 3}, min_units_per_variant=2, **fixed), found
        )
        return verdict, [each.adjusted_p_value for each in verdict.criteria]

    alone = verdict_of(experiment(min_units_per_variant=2, **fixed), two(score=0.06)).criteria[0]
    # Two hypotheses are open: twice the p-value.
    _, (first, _) = result(0.06, 0.0)
    assert first == pytest.approx(2 * alone.adjusted_p_value, rel=0.01)
    assert alone.adjusted_p_value < 0.05 < first
    # One is rejected already: the other goes by itself.
    verdict, (_, second) = result(0.5, 0.06)
    assert second == pytest.approx(alone.adjusted_p_value, rel=0.01)
    assert (verdict.decision, verdict.variant_id) == (SHIP, "a")
    assert "looks best" in verdict.reason


def test_ways_to_fail_share_the_level() -> None:
    fields: dict[str, Any] = {
        "metrics": [QUALITY, COST],
        "min_units_per_variant": 2,
        "verdict_method": pb.INFERENCE_METHOD_FIXED_HORIZON,
    }
    found = two(quality=-0.06, cost=-5)  # p 0.03, one-sided
    assert verdict_of(experiment(**fields), found).decision == KEEP
    guarded = experiment(**fields, guardrails=[guardrail("cost", absolute=1)])
    assert verdict_of(guarded, found).decision == INCONCLUSIVE


def test_keeping_the_control_needs_every_treatment_to_fail() -> None:
    made = experiment({"control": 1 / 3, "a": 1 / 3, "b": 1 / 3})
    assert verdict_of(made, many({"a": {"score": -1}, "b": {"score": 0.0}})).decision == INCONCLUSIVE
    assert verdict_of(made, many({"a": {"score": -1}, "b": {"score": -1}})).decision == KEEP


def test_a_treatment_that_gets_no_units_any_more_is_no_candidate() -> None:
    phases = [{"control": 1 / 3, "a": 1 / 3, "b": 1 / 3}, {"control": 0.5, "a": 0.0, "b": 0.5}]
    made = experiment(phases[0], phases=phases)
    found = many({"a": {"score": 0.0}, "b": {"score": -1}})
    assert verdict_of(made, found).decision == KEEP


def test_a_breach_is_found_at_any_look_and_shows_its_interval() -> None:
    made = experiment(metrics=[QUALITY, COST], guardrails=[guardrail("cost", absolute=0.2)])
    (breach,) = reported(made, two(quality=1, cost=0.6)).breaches
    assert (breach.variant_id, breach.guardrail.metric_id) == ("tuned", "cost")
    assert 0.2 < breach.interval.lower < 0.6 < breach.interval.upper
    assert breach.interval.confidence == pytest.approx(0.9)
    # Beyond the margin in the data alone, or to a single look (two standard errors), is no breach.
    assert not reported(made, two(quality=1, cost=0.22)).breaches
    assert not reported(made, two(quality=1, cost=0.265)).breaches


def test_a_handful_of_units_breaches_nothing() -> None:
    made = experiment(metrics=[QUALITY, COST], guardrails=[guardrail("cost", absolute=0.2)])
    assert reported(made, two(100, quality=1, cost=9)).breaches
    assert not reported(made, two(99, quality=1, cost=9)).breaches


def test_a_breach_holds_the_ramp_up() -> None:
    ramp = [pb.RampStep(coverage=0.1), pb.RampStep(coverage=1.0)]
    made = experiment(metrics=[QUALITY, COST], guardrails=[guardrail("cost", absolute=0.2)], ramp=ramp)
    ramping: Experiment = _ramping(made)
    reasons = {each.reason for each in reported(ramping, two(quality=0, cost=1)).results.notices}
    assert "RAMP_HELD" in reasons
    reasons = {each.reason for each in reported(ramping, two(quality=0, cost=0)).results.notices}
    assert "RAMP_HELD" not in reasons


def _ramping(made: Experiment) -> Experiment:
    return replace(made, ramp=Ramp(1, made.start_time))


def looked_at(shift: float, runs: int) -> list[pb.Decision.ValueType]:
    """What each run would have decided at the first of twenty looks that decides anything."""
    made = experiment(metrics=[QUALITY], min_units_per_variant=100, planned_units_per_variant=2000)
    rng = np.random.default_rng(20260302)
    decisions = []
    for _ in range(runs):
        seen = {"control": Moments.zero(1), "tuned": Moments.zero(1)}
        decision: pb.Decision.ValueType = INCONCLUSIVE
        for _look in range(20):
            seen["control"] += Moments.of(rng.normal(size=100))
            seen["tuned"] += Moments.of(rng.normal(shift, size=100))
            cells = {(1, each, "quality"): Cell(Sample(of), of.n) for each, of in seen.items()}
            (judged,) = judge(study(made, Snapshot(cells=cells)))
            if judged.is_shown_to_fulfil or judged.is_shown_to_fail:
                decision = SHIP if judged.is_shown_to_fulfil else KEEP
                break
        decisions.append(decision)
    return decisions


def test_twenty_looks_at_no_effect_seldom_decide_wrongly() -> None:
    """400 runs; the level is 5 % in each direction, of which a sequence with an end spends only a part."""
    decisions = looked_at(0.0, runs=400)
    assert decisions.count(SHIP) <= 20
    assert decisions.count(KEEP) <= 20


def test_an_effect_is_found_at_one_of_twenty_looks() -> None:
    decisions = looked_at(0.15, runs=100)
    assert decisions.count(SHIP) >= 90
    assert not decisions.count(KEEP)


def test_the_method_is_told() -> None:
    assert verdict_of(experiment(), two(score=0)).method == pb.INFERENCE_METHOD_ALWAYS_VALID
