"""What caps do to a metric, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from neuroweaver.experiment.analysis import event_use
from neuroweaver.experiment.analysis.study import Study
from neuroweaver.experiment.domain.model import CONCLUDED
from neuroweaver.experiment.domain.snapshot import CAPS_GROWTH, CAPS_GROWTH_HOURLY, Calibration
from neuroweaver.statistics.moments import Moments
from neuroweaver.statistics.winsorization import NO_CAPS, Caps
from neuroweaver.v1 import experiment_pb2 as pb

# Beyond these, look again; of units also beyond twice what quantiles ask for.
_MUCH_OF_UNITS: Final = 0.05
_MUCH_OF_TOTAL: Final = 0.2


def notices(study: Study) -> Iterable[pb.ExperimentNotice]:
    """One for each metric with caps: what they cut, or that there are none, and the way out."""
    for metric in study.experiment.spec.metrics:
        if metric.HasField("winsorization"):
            reason, message = _notice(study, metric)
            yield pb.ExperimentNotice(reason=reason, message=message, metric_id=metric.metric_id)


def calibrating(study: Study, metric_id: str) -> str:
    """What the caps by quantiles still wait for; empty if for nothing."""
    metric = study.experiment.metric(metric_id)
    if metric is None or not _is_by_quantiles(metric.winsorization):
        return ""
    needed, window = metric.winsorization.calibration_units, metric.HasField("conversion_window")
    calibration = study.snapshot.calibrations.get(metric_id)
    units = calibration.units if calibration else 0
    if calibration is not None and units >= needed:
        return ""
    what = "have an event of either part" if _is_ratio(metric) else "have a value"
    if window:
        what = f"{what.replace('a value', 'a complete value')}, their conversion window being over"
    return (
        f"The caps of {metric_id} are set once {needed:,} units {what}"
        f"{f' ({units:,} at the last look)' if calibration else ''}; until then its values are not capped. An"
        " experiment with a lower `calibration_units` has them earlier."
    )


def total_shares(cuts: Moments) -> Sequence[float | None]:
    """Of each outcome what caps moved, of what they moved and left together, 0 to 1; None of nothing."""
    columns = range(1, cuts.columns, 2)
    return [cuts.sum(column) / cuts.sum(column + 1) if cuts.sum(column + 1) else None for column in columns]


def _notice(study: Study, metric: pb.ExperimentMetric) -> tuple[str, str]:
    metric_id = metric.metric_id
    cells = [cell for variant in study.variants for cell in study.cells(variant, metric_id)]
    if any(cell.cuts is None for cell in cells):
        return "WINSORIZATION_OF_EARLIER_VERSION", (
            f"The values of {metric_id} are still capped as an earlier version did."
            f" {event_use.recount(study)}"
        )
    if waiting := calibrating(study, metric_id):
        return "WINSORIZATION_CALIBRATING", waiting
    calibration = study.snapshot.calibrations.get(metric_id)
    if calibration is not None and not calibration.is_in_force:
        return "WINSORIZATION_NOT_IN_FORCE", (
            f"No cap of {metric_id} is in force: at the quantiles asked for, too many of the"
            f" {calibration.units:,} complete units share one value, or most of those that stand out on its"
            " side would be cut. One far-out unit can move its mean; an experiment with a quantile further"
            f" out, or with caps by values, has one.{_lag(study)}"
        )
    return "WINSORIZED", _cutting(study, metric, calibration)


def _lag(study: Study) -> str:
    """How far behind the data caps by quantiles may be."""
    if study.experiment.state == CONCLUDED:
        return ""
    return (
        f" Caps are taken again once the metric's units and events have grown by {CAPS_GROWTH - 1:.0%}, and"
        f" every hour once by {CAPS_GROWTH_HOURLY - 1:.0%}."
    )


def _cutting(study: Study, metric: pb.ExperimentMetric, calibration: Calibration | None) -> str:
    parts = _parts(metric, calibration)
    held = [
        f"{'in its ' if name else ''}{name}{_ends(caps)}" for name, caps in parts.items() if caps != NO_CAPS
    ]
    text = f"{metric.metric_id} is capped {' and '.join(held)}"
    cuts = study.cuts(metric.metric_id)
    if cuts is None or not cuts.n:
        return f"{text}; no unit has a value yet."
    units, totals = cuts.mean(0), [share or 0.0 for share in total_shares(cuts)]
    shares = [f"{total:.1%} of the {name}total" for name, total in zip(parts, totals, strict=False)]
    text += f": {units:.2%} of the units are cut, and {' and '.join(shares)}."
    asked = metric.winsorization
    cut = (1 - asked.upper_quantile if asked.HasField("upper_quantile") else 0.0) + asked.lower_quantile
    if units > max(_MUCH_OF_UNITS, 2 * cut * len(parts)) or max(totals) > _MUCH_OF_TOTAL:
        text += " That is much: what the treatment does to these units hardly shows in this metric."
    if calibration is not None:
        text += f"{''.join(_missing(asked, parts))}{_lag(study)}"
    return text


def _parts(metric: pb.ExperimentMetric, calibration: Calibration | None) -> Mapping[str, Caps]:
    """What is capped, by its name, which is empty unless it is a part of a ratio."""
    caps = metric.winsorization
    if calibration is None:
        lower = caps.lower_value if caps.HasField("lower_value") else None
        return {"": Caps(lower, caps.upper_value if caps.HasField("upper_value") else None)}
    own = Caps(calibration.lower, calibration.upper)
    return {"numerator ": own, "denominator ": calibration.denominator} if _is_ratio(metric) else {"": own}


def _ends(caps: Caps) -> str:
    sides = [f"below {caps.lower:.6g}"] if caps.lower is not None else []
    return " and ".join([*sides, f"above {caps.upper:.6g}"] if caps.upper is not None else sides)


def _missing(asked: pb.Winsorization, parts: Mapping[str, Caps]) -> Iterator[str]:
    is_asked = {"lower": asked.HasField("lower_quantile"), "upper": asked.HasField("upper_quantile")}
    for name, caps in parts.items():
        for side, end in (("lower", caps.lower), ("upper", caps.upper)):
            if is_asked[side] and end is None:
                yield (
                    f" No {side} {name}cap is in force: too many units share the value at that quantile, or"
                    " most of those that stand out on that side would be cut."
                )


def _is_by_quantiles(caps: pb.Winsorization) -> bool:
    return caps.HasField("lower_quantile") or caps.HasField("upper_quantile")


def _is_ratio(metric: pb.ExperimentMetric) -> bool:
    return metric.HasField("ratio")
