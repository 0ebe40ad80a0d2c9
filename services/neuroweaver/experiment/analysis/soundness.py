"""Whether a metric can be acted on yet; otherwise it neither stops an experiment nor moves its weights."""

from __future__ import annotations

from neuroweaver.experiment.analysis import event_use, winsorizing
from neuroweaver.experiment.analysis.study import Study


def is_sound(study: Study, metric_id: str) -> bool:
    """Its caps are set, and the times of its events fit their exposures."""
    return not (winsorizing.calibrating(study, metric_id) or _is_mistimed(study, metric_id))


def _is_mistimed(study: Study, metric_id: str) -> bool:
    names = set(event_use.names(study, [metric_id]))
    if any(event_use.is_mostly_left_out(study, name) for name in names):
        return True
    return any(each.name in names for each in event_use.imbalances(study))
