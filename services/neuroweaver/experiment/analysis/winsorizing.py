"""What caps do to a metric, in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from neuroweaver.experiment.analysis.study import Study
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
    what = "have a complete value, their conversion window being over" if window else "have a value"
    return (
        f"The caps of {metric_id} are set once {needed:,} units {what}"
        f"{f' ({units:,} at the last look)' if calibration else ''}; until then its values are not capped. An"
        " experiment with a lower `calibration_units` has them earlier."
    )


def _notice(study: Study, metric: pb.ExperimentMetric) -> tuple[str, str]:
    metric_id = metric.metric_id
    cells = [cell for variant in study.variants for cell in study.cells(variant, metric_id)]
    if any(cell.cuts is None for cell in cells):
        return "WINSORIZATION_OF_EARLIER_VERSION", (
            f"The values of {metric_id} are still capped as an earlier version did. They are capped anew with"
            " the next events, or within the hour; RecomputeResults with `replace` does it now."
        )
    if waiting := calibrating(study, metric_id):
        return "WINSORIZATION_CALIBRATING", waiting
    calibration = study.snapshot.calibrations.get(metric_id)
    if calibration is not None and calibration.lower is None and calibration.upper is None:
        return "WINSORIZATION_NOT_IN_FORCE", (
            f"No cap of {metric_id} is in force: at the quantiles asked for, too many of the"
            f" {calibration.units:,} complete units share one value, or most of those that stand out would be"
            " cut. One far-out unit can move its mean; an experiment with a quantile further out, or with"
            " caps by values, has one."
        )
    return "WINSORIZED", _cutting(study, metric)


def _cutting(study: Study, metric: pb.ExperimentMetric) -> str:
    caps = metric.winsorization
    lower = caps.lower_value if caps.HasField("lower_value") else None
    upper = caps.upper_value if caps.HasField("upper_value") else None
    if (calibration := study.snapshot.calibrations.get(metric.metric_id)) is not None:
        lower, upper = calibration.lower, calibration.upper
    sides = [f"below {lower:.6g}"] if lower is not None else []
    sides += [f"above {upper:.6g}"] if upper is not None else []
    text = f"{metric.metric_id} is capped {' and '.join(sides)}"
    cuts = study.cuts(metric.metric_id)
    if cuts is None or not cuts.n:
        return f"{text}; no unit has a value yet."
    units, total = cuts.mean(0), cuts.sum(1) / cuts.sum(2) if cuts.sum(2) else 0.0
    text += f": {units:.2%} of the units are cut, and {total:.1%} of the total."
    asked = (1 - caps.upper_quantile if caps.HasField("upper_quantile") else 0.0) + caps.lower_quantile
    if units > max(_MUCH_OF_UNITS, 2 * asked) or total > _MUCH_OF_TOTAL:
        text += " That is much: what the treatment does to these units hardly shows in this metric."
    without_lower = caps.HasField("lower_quantile") and lower is None
    if without_lower or (caps.HasField("upper_quantile") and upper is None):
        side = "lower" if without_lower else "upper"
        text += f" No {side} cap is in force: too many units share the value at that quantile."
    return text


def _is_by_quantiles(caps: pb.Winsorization) -> bool:
    return caps.HasField("lower_quantile") or caps.HasField("upper_quantile")
