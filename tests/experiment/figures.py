"""Experiments and their statistics, made of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroweaver.experiment.analysis.report import Report, report
from neuroweaver.experiment.domain import specification
from neuroweaver.experiment.domain.model import CREATED, RUNNING, Experiment, Phase
from neuroweaver.experiment.domain.snapshot import Cell, Group, Snapshot
from neuroweaver.statistics.arm import Sample
from neuroweaver.statistics.moments import Moments
from neuroweaver.v1 import experiment_pb2 as pb

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
NOW = START + timedelta(days=3, hours=1)

EQUAL = {"control": 0.5, "tuned": 0.5}


def metric(metric_id: str = "score", **fields: Any) -> pb.ExperimentMetric:
    kinds = {"mean", "proportion", "ratio", "quantile", "count", "pairwise"}
    if not fields.keys() & kinds:
        fields["mean"] = pb.MeanMetric(source=pb.EventSource(event_name=metric_id))
    return pb.ExperimentMetric(**{"metric_id": metric_id, "goal": pb.METRIC_GOAL_INCREASE} | fields)


def lower(metric_id: str, **fields: Any) -> pb.ExperimentMetric:
    """A metric of which less is better."""
    return metric(metric_id, goal=pb.METRIC_GOAL_DECREASE, **fields)


def superior(metric_id: str = "score", **size: float) -> pb.Criterion:
    return pb.Criterion(metric_id=metric_id, superiority=pb.EffectSize(**size or {"absolute": 0.0}))


def no_worse(metric_id: str, **size: float) -> pb.Criterion:
    return pb.Criterion(metric_id=metric_id, non_inferiority=pb.EffectSize(**size))


def guardrail(metric_id: str, **size: float) -> pb.Guardrail:
    return pb.Guardrail(metric_id=metric_id, margin=pb.EffectSize(**size))


def experiment(
    weights: Mapping[str, float] | None = None,
    *,
    phases: Sequence[Mapping[str, float]] = (),
    state: pb.ExperimentState.ValueType = RUNNING,
    **fields: Any,
) -> Experiment:
    """A started one; phases: the weights of each, the last still open."""
    weights = weights or EQUAL
    metrics = fields.pop("metrics", None) or [metric()]
    spec = pb.ExperimentSpec(
        **{
            "title": "Better?",
            "variants": [pb.ExperimentVariant(variant_id=name, weight=w) for name, w in weights.items()],
            "control_variant_id": "control",
            "metrics": metrics,
            "target_metric_id": metrics[0].metric_id,
        }
        | fields
    )
    made = tuple(
        Phase(number, START + timedelta(days=number - 1), dict(each), {})
        for number, each in enumerate(phases or [weights], 1)
    )
    return Experiment(
        project="p",
        test_id="t",
        spec=specification.completed(spec, START),
        state=state,
        weights=made[-1].weights,
        salt="s",
        pinned={},
        baseline={},
        phases=() if state == CREATED else made,
        created_by="user",
        create_time=START,
        start_time=None if state == CREATED else START,
        update_time=START,
    )


def cell(values: npt.ArrayLike, events: int | None = None) -> Cell:
    """values: (units,) or (units, 2) of a ratio."""
    rows = np.asarray(values, dtype=np.float64)
    return Cell(Sample(Moments.of(rows)), len(rows) if events is None else events)


def snapshot(
    *phases: Mapping[str, Mapping[str, npt.ArrayLike]],
    units: Mapping[str, int] | None = None,
    units_by_day: Mapping[Any, int] | None = None,
) -> Snapshot:
    """phases: of each, by variant, the values of the units by metric. units: instead of their number."""
    cells, groups = {}, {}
    for number, variants in enumerate(phases, 1):
        for variant, metrics in variants.items():
            count = 0
            for metric_id, values in metrics.items():
                cells[number, variant, metric_id] = cell(values)
                count = max(count, len(np.asarray(values)))
            groups[number, variant] = Group(units[variant] if units else count)
    return Snapshot(groups=groups, cells=cells, units_by_day=units_by_day or {})


def reported(made: Experiment, found: Snapshot, **options: Any) -> Report:
    return report(made, found, **({"now": NOW} | options))


def verdict_of(made: Experiment, found: Snapshot, **options: Any) -> pb.ExperimentVerdict:
    return reported(made, found, **options).results.verdict


def normal(count: int, mean: float, seed: int, std_dev: float = 1.0) -> npt.NDArray[np.float64]:
    """Values whose mean and standard deviation are exactly these."""
    drawn = np.random.default_rng(seed).normal(size=count)
    return mean + std_dev * (drawn - drawn.mean()) / drawn.std(ddof=1)


def numbers(message: Any) -> list[float]:
    """Every floating-point number in a message."""
    found: list[float] = []
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        if field.message_type is None:
            found += [each for each in values if isinstance(each, float)]
        elif field.message_type.GetOptions().map_entry:
            continue
        else:
            for each in values:
                found += numbers(each)
    return found
