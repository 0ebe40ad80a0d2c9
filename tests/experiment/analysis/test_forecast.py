from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest

from experiment.figures import (
    EQUAL,
    NOW,
    START,
    experiment,
    guardrail,
    lower,
    metric,
    normal,
    snapshot,
    superior,
    verdict_of,
)
from neuroweaver.experiment.analysis.forecast import Pace, pace
from neuroweaver.experiment.domain.model import PAUSED, STOPPED
from neuroweaver.experiment.domain.snapshot import Snapshot
from neuroweaver.v1 import experiment_pb2 as pb

# Three full days before NOW, of which the first is that of the start.
DAYS = {START.date() + timedelta(days=index): 500 for index in range(4)}


def two(units: int, **shifts: float) -> Snapshot:
    metrics = enumerate(shifts.items())
    shaped = {name: (normal(units, 10, i), normal(units, 10 + shift, 50 + i)) for i, (name, shift) in metrics}
    variants = {
        variant: {name: values[index] for name, values in shaped.items()}
        for index, variant in enumerate(EQUAL)
    }
    return replace(snapshot(variants), units_by_day=DAYS)


@pytest.mark.parametrize(
    ("fields", "shifts"),
    [
        ({}, {"score": 0.1}),
        ({}, {"score": -0.1}),
        ({"verdict_method": pb.INFERENCE_METHOD_FIXED_HORIZON}, {"score": 0.07}),
        (
            {
                "metrics": [metric(), lower("cost")],
                "guardrails": [guardrail("cost", absolute=0.15)],
                "decision_rule": pb.DecisionRule(any_of=[superior("score"), superior("cost")]),
            },
            {"score": 0.09, "cost": 0.0},
        ),
    ],
)
def test_with_as_many_units_as_forecast_the_verdict_is_there(
    fields: dict[str, Any], shifts: dict[str, float]
) -> None:
    made = experiment(min_units_per_variant=500, planned_units_per_variant=500, **fields)
    now = verdict_of(made, two(1000, **shifts))
    assert now.decision == pb.DECISION_INCONCLUSIVE
    assert now.forecast.units > 100
    needed = 1000 + now.forecast.units / 2
    assert verdict_of(made, two(round(0.97 * needed), **shifts)).decision == pb.DECISION_INCONCLUSIVE
    assert verdict_of(made, two(round(1.03 * needed), **shifts)).decision != pb.DECISION_INCONCLUSIVE


def test_days_follow_from_the_pace() -> None:
    found = verdict_of(experiment(), two(1000, score=0.1)).forecast
    assert found.days == pytest.approx(found.units / 500)
    assert "500 units a day" in found.basis


def test_what_is_missing_for_the_minimum_is_waited_for() -> None:
    made = experiment({"control": 0.75, "tuned": 0.25}, min_units_per_variant=1500)
    variants = {"control": {"score": normal(3000, 10, 1)}, "tuned": {"score": normal(1000, 12, 2)}}
    found = replace(snapshot(variants), units_by_day=DAYS)
    assert verdict_of(made, found).forecast.units == 2000


def test_nothing_is_forecast_where_nothing_comes_or_nothing_can_be_said() -> None:
    assert verdict_of(experiment(), two(1000, score=0.1)).HasField("forecast")
    assert not verdict_of(experiment(), two(1000, score=0.0)).HasField("forecast")
    for state in (PAUSED, STOPPED):
        assert not verdict_of(experiment(state=state), two(1000, score=0.1)).HasField("forecast")
    idle = replace(two(1000, score=0.1), units_by_day={})
    assert not verdict_of(experiment(), idle).HasField("forecast")


def test_the_pace_is_that_of_the_last_full_days() -> None:
    made = experiment()
    by_day = {date(2026, 3, day): 100 * day for day in range(2, 13)}
    noon = START.replace(day=12)
    assert pace(made, by_day, noon) == Pace(800.0, 7)  # 5th to 11th
    assert pace(made, by_day, START.replace(day=4)) == Pace(300.0, 1)
    assert pace(made, {START.date(): 50}, START + timedelta(hours=6)) == Pace(200.0, 0.25)
    assert pace(made, {START.date(): 50}, START + timedelta(minutes=59)) is None
    assert pace(made, {}, NOW) is None
