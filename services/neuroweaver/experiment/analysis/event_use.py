"""Accepted events that count in no metric, by reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Final

from neuroweaver.experiment.analysis.study import Study
from neuroweaver.experiment.domain.metrics import Estimate, estimate_of, outcomes_of
from neuroweaver.experiment.domain.model import CONCLUDED
from neuroweaver.experiment.domain.snapshot import Uses
from neuroweaver.v1 import experiment_pb2 as pb

NO_USES: Final = Uses()

_REASONS: Final = {
    "before_exposure": pb.UNUSED_REASON_BEFORE_EXPOSURE,
    "after_window": pb.UNUSED_REASON_AFTER_WINDOW,
}


def unused(study: Study) -> Sequence[pb.UnusedEvents]:
    """All of them, by reason, name and variant."""
    found = [
        pb.UnusedEvents(reason=reason, name=name, variant_id=variant, count=count, share=count / use.events)
        for field, reason in _REASONS.items()
        for name in names(study)
        for variant in study.variants
        if (use := uses(study, variant, name)).events and (count := getattr(use, field))
    ]
    if study.snapshot.quality.overridden:
        count = study.snapshot.quality.overridden
        found.append(pb.UnusedEvents(reason=pb.UNUSED_REASON_OVERRIDE, count=count))
    between = sum(study.snapshot.between.get(phase.number, 0) for phase in study.phases)
    if between:
        found.append(pb.UnusedEvents(reason=pb.UNUSED_REASON_WITHOUT_CONTROL, count=between))
    return found


def recount(study: Study) -> str:
    """When what an earlier version counted is counted anew."""
    if study.experiment.state == CONCLUDED:
        return "A decided experiment stays so; RecomputeResults with `replace` counts its units anew."
    return (
        "Its units are counted anew when results are next read, with the next events, or within the hour;"
        " RecomputeResults with `replace` does it now."
    )


def names(study: Study, metric_ids: Iterable[str] | None = None) -> Sequence[str]:
    """Of the events that some metrics read of units, or all metrics."""
    wanted = None if metric_ids is None else set(metric_ids)
    found = (
        outcome.event_name
        for metric in study.experiment.spec.metrics
        if estimate_of(metric) is not Estimate.WIN_RATE and (wanted is None or metric.metric_id in wanted)
        for outcome in outcomes_of(metric)
    )
    return list(dict.fromkeys(found))


def uses(study: Study, variant_id: str, name: str) -> Uses:
    found = [study.snapshot.uses.get((phase.number, variant_id, name), NO_USES) for phase in study.phases]
    return Uses(*(sum(getattr(use, field.name) for use in found) for field in fields(Uses)))
