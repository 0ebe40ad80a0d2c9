"""Whether a metric can be acted on yet; otherwise it neither stops an experiment nor moves its weights."""

from __future__ import annotations

from collections.abc import Sequence

from neuroweaver.experiment.analysis import identity, timing, winsorizing
from neuroweaver.experiment.analysis.study import Study
from neuroweaver.experiment.analysis.timing import Fault


def faults(study: Study) -> Sequence[Fault]:
    """Events that are lost, or do not fit, in a way that may differ between variants."""
    return [*timing.faults(study), *identity.faults(study)]


def unsound(study: Study, faults: Sequence[Fault]) -> set[str]:
    """The metrics whose caps are not set, the times of whose events do not fit, or that an earlier version
    counted. faults: of the study.
    """
    mistimed = {metric_id for fault in faults if fault.blocker for metric_id in fault.metric_ids}
    metric_ids = (metric.metric_id for metric in study.experiment.spec.metrics)
    uncapped = {each for each in metric_ids if winsorizing.calibrating(study, each)}
    return mistimed | uncapped | study.snapshot.outdated
