"""When a verdict can be expected, if the effects are what they look like and units come as they did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from neuroweaver.experiment.analysis.study import Study
from neuroweaver.experiment.analysis.verdict import FOR_GOOD, Finding, Judged
from neuroweaver.experiment.domain.model import RUNNING, Experiment
from neuroweaver.statistics.crossing import growth
from neuroweaver.statistics.distributions import normal_quantile
from neuroweaver.v1 import experiment_pb2 as pb

_DAYS: Final = 7
# A younger experiment has no pace yet.
_YOUNGEST: Final = timedelta(hours=1)
# Nobody waits longer, and no effect stays what it looked like for so long.
_MOST_DAYS: Final = 3650.0


@dataclass(frozen=True)
class Pace:
    """Units a day over all variants. days: how many of them it is taken from."""

    units_per_day: float
    days: float


def pace(experiment: Experiment, units_by_day: Mapping[date, int], now: datetime) -> Pace | None:
    """Of the last full days, at most seven; before the first full one, of the time since the start. None
    without units.
    """
    if experiment.start_time is None:
        return None
    first = experiment.start_time.date() + timedelta(days=1)
    days = [now.date() - timedelta(days=back) for back in range(1, _DAYS + 1)]
    full = [day for day in days if day >= first]
    if full:
        recent = Pace(sum(units_by_day.get(day, 0) for day in full) / len(full), len(full))
    else:
        age = now - experiment.start_time
        if age < _YOUNGEST:
            return None
        length = age / timedelta(days=1)
        recent = Pace(sum(units_by_day.values()) / length, length)
    return recent if recent.units_per_day > 0 else None


def forecast(
    study: Study, verdict: pb.ExperimentVerdict, judged: Sequence[Judged], now: datetime
) -> pb.VerdictForecast | None:
    """None if nothing can be said, or nothing more comes."""
    is_open = verdict.decision == pb.DECISION_INCONCLUSIVE and study.experiment.state == RUNNING
    is_broken = any(gap.blocker in FOR_GOOD for gap in verdict.gaps)
    coming = pace(study.experiment, study.snapshot.units_by_day, now)
    if not is_open or is_broken or coming is None:
        return None
    candidates = [each for each in judged if each.treatment in study.candidates]
    times = _verdict_at(study, candidates)
    if times is None:
        return None
    total = sum(map(study.units, study.variants))
    units = max(math.ceil((times - 1) * total), _short_of(study, verdict.gaps))
    days = units / coming.units_per_day
    if days > _MOST_DAYS:
        return None
    return pb.VerdictForecast(days=days, units=units, basis=_basis(study, coming))


def _verdict_at(study: Study, judged: Sequence[Judged]) -> float | None:
    """How many times the present units: the first treatment to fulfil the rule, or the last to fail."""
    keeps = _last([_fails_at(study, each) for each in judged])
    return _first([*(_ships_at(study, each) for each in judged), keeps])


def _ships_at(study: Study, judged: Judged) -> float | None:
    needed = [_shown_at(study, finding, judged.factor, is_met=True) for finding in judged.conjuncts]
    if judged.alternatives:
        # The best of them carries the factor of all.
        factor = judged.factor * len(judged.alternatives)
        needed.append(_first(_shown_at(study, each, factor, is_met=True) for each in judged.alternatives))
    return _last(needed)


def _fails_at(study: Study, judged: Judged) -> float | None:
    factor = len(judged.conjuncts) + bool(judged.alternatives)
    together = _last([_shown_at(study, each, factor, is_met=False) for each in judged.alternatives])
    return _first([*(_shown_at(study, each, factor, is_met=False) for each in judged.conjuncts), together])


def _shown_at(study: Study, finding: Finding, factor: int, *, is_met: bool) -> float | None:
    """How many times the present units it takes until the requirement is shown to be met, or to fail."""
    if finding.is_met if is_met else finding.is_failed:
        return 1.0
    requirement = finding.requirement
    above = requirement.above == is_met
    comparison = study.comparisons[requirement.metric_id, finding.treatment]
    normal = comparison.normal if comparison is not None else None
    if comparison is None or normal is None:
        return None
    alpha = finding.level / factor
    if not study.is_fixed_horizon:
        return growth(normal, alpha, study.planned, comparison.bound(requirement.bound), above=above)
    z = comparison.z(requirement.bound) * (1 if above else -1)
    return max(1.0, (normal_quantile(alpha) / z) ** 2) if z > 0 else None


def _first(times: Iterable[float | None]) -> float | None:
    """None: never."""
    return min((time for time in times if time is not None), default=None)


def _last(times: Sequence[float | None]) -> float | None:
    """None if there are none, or if one of them never comes."""
    coming = [time for time in times if time is not None]
    return max(coming, default=None) if len(coming) == len(times) else None


def _short_of(study: Study, gaps: Iterable[pb.VerdictGap]) -> int:
    """Units until the variant that is farthest behind has what it needs."""
    weights = study.experiment.phase.weights if study.experiment.phase else study.experiment.weights
    missing = [
        gap.missing_units / weights[gap.variant_id]
        for gap in gaps
        if gap.HasField("missing_units") and weights.get(gap.variant_id, 0.0) > 0
    ]
    return math.ceil(max(missing, default=0.0))


def _basis(study: Study, coming: Pace) -> str:
    if coming.days >= 1:
        since = f"the last {coming.days:.0f} full days" if coming.days > 1 else "the last full day"
    else:
        since = f"the {coming.days * 24:.1f} hours since the start"
    method = "fixed-horizon" if study.is_fixed_horizon else "always-valid"
    return (
        f"{coming.units_per_day:.4g} units a day, as in {since}; every effect and its spread stay what they"
        f" look like now; {method} tests at the levels of the verdict. If an effect is smaller than it looks,"
        " it takes longer."
    )
