"""How two versions differ: in content, in what was measured, in whether one fits where the other runs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.mesh.wire.threads import check_wanted
from neuroweaver.registry.comparison import significance
from neuroweaver.registry.comparison.compatibility import Finding, findings, labels, pin_of, recommendation
from neuroweaver.registry.comparison.wording import (
    counted,
    legible,
    listed,
    numbers_apart,
    p_value,
    percent,
    signed,
)
from neuroweaver.registry.domain.model import BasePin, Direction, Lineage, Metric, ModelVersion
from neuroweaver.registry.domain.records import FieldDifference, differing
from neuroweaver.registry.domain.versions import Level
from neuroweaver.statistics.estimate import Interval
from neuroweaver.statistics.multiplicity import holm

# A configuration is descended into this far; deeper, its long paths would repeat themselves over and over.
_MAX_DEPTH: Final = 8
_MAX_PATH: Final = 256
_MAX_DIFFERENCES: Final = 1000

_BASELINE: Final = "_base"
_PLAIN_KEY: Final = re.compile(r'[^\s."\[\]\\]+')


@dataclass(frozen=True, kw_only=True)
class MetricDifference:
    """A metric of either version. difference: b - a.

    p_value: of this metric alone. corrected_p_value: after Holm's correction; is_better goes by it.
    caveat: why the two values are shown and not judged; empty if they may be.
    """

    name: str
    a: float | None
    b: float | None
    difference: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    corrected_p_value: float | None = None
    direction: Direction = Direction.UNKNOWN
    unit: str = ""
    is_better: bool | None = None
    caveat: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """recommended_bump: from A to B; None if nothing calls for a new version."""

    a: ModelVersion
    b: ModelVersion
    confidence: float
    differences: tuple[FieldDifference, ...]
    metrics: tuple[MetricDifference, ...]
    compatibility: tuple[Finding, ...]
    recommended_bump: Level | None
    recommendation_reason: str
    verdict: str


def compare(a: ModelVersion, b: ModelVersion, confidence: float = 0.95) -> Comparison:
    """What B is against A.

    Whether a metric is better is decided at `confidence`, after Holm's correction over all metrics of this
    comparison that have a p-value and no caveat; the intervals are those of each metric alone. Raises
    InvalidArgument.
    """
    if not 0 < confidence < 1:
        raise InvalidArgument("confidence", "is not between 0 and 1")
    differences = tuple(_differences(a, b))
    metrics = tuple(_decided(list(_metrics(a, b, confidence)), 1 - confidence))
    compatibility = tuple(findings(a, b))
    level, reason = recommendation(a, b, [difference.path for difference in differences], compatibility)
    return Comparison(
        a=a,
        b=b,
        confidence=confidence,
        differences=differences,
        metrics=metrics,
        compatibility=compatibility,
        recommended_bump=level,
        recommendation_reason=reason,
        verdict=_verdict(labels(a, b), metrics, confidence),
    )


def flattened(config: Mapping[str, Any], path: str = "", depth: int = _MAX_DEPTH) -> dict[str, Any]:
    """A configuration's values by path; a key that holds a dot is quoted, as in `config["a.b"].c`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if _PLAIN_KEY.fullmatch(key):
            inner = f"{path}.{key}" if path else key
        else:
            inner = f"{path}[{json.dumps(key, ensure_ascii=False)}]"
        if isinstance(value, Mapping) and depth > 1 and len(inner) <= _MAX_PATH:
            flat |= flattened(value, inner, depth - 1)
        else:
            flat[inner] = value
    return flat


def is_baseline(name: str, names: Collection[str]) -> bool:
    """Whether it is what the base model reached in another metric: `loss_base` beside `loss`."""
    return name.endswith(_BASELINE) and name.removesuffix(_BASELINE) in names


def own_metrics(version: ModelVersion) -> dict[str, Metric]:
    """A version's metrics in the order of their names, without the base model's."""
    names = version.metrics.keys()
    return {name: version.metrics[name] for name in sorted(names) if not is_baseline(name, names)}


def is_judged(name: str) -> bool:
    """Whether a judge gave it, by the names that the Trainer registers."""
    return name.startswith(("judge_", "win_rate"))


def _differences(a: ModelVersion, b: ModelVersion) -> Iterator[FieldDifference]:
    """By path: `config.optimizer.lr`, `lineage.dataset_digest`, `tags.team`, `artifacts.adapter/x.json`."""
    settings: list[FieldDifference] = []
    for depth in (_MAX_DEPTH, 1):
        before, after = (flattened(version.config, "config", depth) for version in (a, b))
        settings = list(differing(before, after))
        if len(settings) <= _MAX_DIFFERENCES:
            break
    yield from settings
    yield from differing(_facts(a), _facts(b))


def _facts(version: ModelVersion) -> dict[str, Any]:
    base, lineage = version.base or BasePin(), version.lineage or Lineage()
    data = {"dataset_digest": lineage.dataset_digest, "dataset_path": lineage.dataset_path}
    return {
        **{f"base.{part}": value for part, value in vars(base).items() if value},
        **{f"lineage.{part}": value for part, value in data.items() if value},
        **{f"tags.{key}": value for key, value in version.tags.items()},
        **{f"artifacts.{artifact.path}": artifact.digest for artifact in version.artifacts},
    }


def _metrics(a: ModelVersion, b: ModelVersion, confidence: float) -> Iterator[MetricDifference]:
    names = a.metrics.keys() | b.metrics.keys()
    for name in sorted(names):
        check_wanted()
        before, after = a.metrics.get(name), b.metrics.get(name)
        metrics = [metric for metric in (before, after) if metric]
        units = {metric.unit for metric in metrics} - {""}
        unit = units.pop() if len(units) == 1 else ""
        shown = MetricDifference(
            name=name,
            a=before.value if before else None,
            b=after.value if after else None,
            direction=_direction(metrics),
            unit=unit,
        )
        if before is None or after is None:
            yield shown
        elif units:
            yield replace(shown, caveat=f"in {legible(before.unit)} and in {legible(after.unit)}")
        else:
            estimate = significance.difference(before, after, confidence)
            yield replace(
                shown,
                difference=estimate.value,
                interval=estimate.interval,
                p_value=estimate.p_value,
                caveat=_caveat(name, unit, a, b, names),
            )


def _direction(metrics: Sequence[Metric]) -> Direction:
    """From whichever knows it; unknown if they contradict each other."""
    directions = {metric.direction for metric in metrics} - {Direction.UNKNOWN}
    return directions.pop() if len(directions) == 1 else Direction.UNKNOWN


def _caveat(name: str, unit: str, a: ModelVersion, b: ModelVersion, names: Collection[str]) -> str:
    """Why the two values were not taken with one yardstick; empty if nothing says so."""
    if is_baseline(name, names):
        return "the base model's own value"
    if is_judged(name):
        for key, what in (("feedback_model", "judge"), ("specialization", "specialisation")):
            if len({str(version.config[key]) for version in (a, b) if version.config.get(key)}) == 2:
                return f"judged with another {what}"
    if pin_of(a).is_at_odds_with(pin_of(b)):
        if name.startswith("win_rate"):
            return "against another base model"
        if unit.endswith("/token") or name.startswith("perplexity"):
            return "per token of another base model"
    return ""


def _decided(metrics: Sequence[MetricDifference], level: float) -> Iterator[MetricDifference]:
    p_values = {
        metric.name: metric.p_value for metric in metrics if metric.p_value is not None and not metric.caveat
    }
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    for metric in metrics:
        chance = corrected.get(metric.name)
        is_better = None
        if chance is not None and chance <= level and metric.difference and metric.direction:
            is_better = (metric.difference > 0) == (metric.direction is Direction.HIGHER_IS_BETTER)
        yield replace(metric, corrected_p_value=chance, is_better=is_better)


def _verdict(names: tuple[str, str], metrics: Sequence[MetricDifference], confidence: float) -> str:
    """One sentence."""
    a, b = names
    shared = [metric for metric in metrics if metric.a is not None and metric.b is not None]
    tested = sorted(
        (metric for metric in shared if metric.corrected_p_value is not None),
        key=lambda metric: (metric.corrected_p_value, metric.p_value, metric.name),
    )
    better = [_change(metric) for metric in tested if metric.is_better]
    worse = [_change(metric) for metric in tested if metric.is_better is False]
    if better and worse:
        said = f"Mixed: {b} is better than {a}, as {listed(better)}, and worse, as {listed(worse)}"
    elif better or worse:
        said = f"{b} is {'better' if better else 'worse'} than {a}: {listed(better or worse)}"
    else:
        said = f"Inconclusive whether {b} is better than {a}: {_undecided(shared, tested, 1 - confidence)}"
    if not tested:
        return f"{said}."
    looked_at = f"{counted(len(shared), 'metric')} in common, {len(tested):,} tested"
    return f"{said}; {looked_at} at {percent(confidence)} confidence, p-values after Holm's correction."


def _undecided(shared: Sequence[MetricDifference], tested: Sequence[MetricDifference], level: float) -> str:
    if not shared:
        return "they share no metric"
    if not tested:
        return "no shared metric has comparable samples or intervals on both sides"
    if not any(metric.difference for metric in tested):
        return "no tested metric changed"
    beyond = [metric for metric in tested if (metric.corrected_p_value or 0.0) <= level]
    if beyond:
        return f"{listed(list(map(_change, beyond)))}, but it is not recorded which direction is better"
    return f"no change beyond chance; the least likely one by chance: {_change(tested[0])}"


def _change(metric: MetricDifference) -> str:
    """`judge_score rose from 5.1 to 6.4 (+0.4 to +2.2, p = 0.012)`."""
    before, after = metric.a or 0.0, metric.b or 0.0
    shown, unit = numbers_apart(before, after), f" {legible(metric.unit)}" if metric.unit else ""
    if before == after:
        moved = f"stayed at {shown[1]}{unit}"
    else:
        moved = f"{'rose' if after > before else 'fell'} from {shown[0]} to {shown[1]}{unit}"
    interval = metric.interval
    bounds = f"{signed(interval.lower)} to {signed(interval.upper)}, " if interval else ""
    return f"{legible(metric.name)} {moved} ({bounds}{p_value(metric.corrected_p_value or 0.0)})"
