"""Whether samples of one variant's units are lost more often than another's, for their ids or their names.

Where ids come from has nothing to do with the variant, unless a variant's own client makes them: then its
comparison lacks events. It is the idea of the test of the split, applied to units with such events. A name
that no metric reads may be misspelt, or be that of an event that only the treatment has: that is noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from neuroweaver.experiment.analysis.study import Study
from neuroweaver.experiment.analysis.timing import Fault, combined, p_of, said
from neuroweaver.experiment.domain.metrics import Estimate, estimate_of
from neuroweaver.experiment.domain.model import Phase
from neuroweaver.statistics.arm import Kind
from neuroweaver.statistics.moments import Moments
from neuroweaver.v1 import experiment_pb2 as pb

_REUSED: Final = pb.EVENT_REJECTION_ID_OF_ANOTHER_UNIT
_UNKNOWN: Final = pb.EVENT_REJECTION_UNKNOWN_METRIC
# By reason: the notice, what was wrong, and what to do.
_SAID: Final = {
    _REUSED: (
        "EVENT_ID_REUSED",
        "have events that were rejected, since their event_id is that of another unit's event",
        (
            "One variant's client makes ids that are not unique, and its events are lost, so that no"
            " comparison can be trusted. Give every event an id of its own, such as a UUID, and begin a new"
            " experiment."
        ),
    ),
    _UNKNOWN: (
        "EVENT_NAMES_UNKNOWN",
        "have events whose names no metric reads",
        (
            "If only one variant has events of these names, that is well. If its client misspells a name, the"
            " comparison lacks its events, and the verdict is wrong: correct the names and send them again."
        ),
    ),
}


def faults(study: Study) -> Iterator[Fault]:
    """Over all treatments, reasons and looks together, the chance to see a difference where there is none is
    at most the level of the test of the split.
    """
    treatments = study.experiment.treatments
    level = study.experiment.spec.sample_ratio_level / max(1, len(treatments) * len(_SAID))
    for treatment in treatments:
        for reason in _SAID:
            p = _p(study, reason, treatment, level)
            if p <= level:
                yield _fault(study, reason, treatment, said(p, level))


def _fault(study: Study, reason: pb.EventRejection.ValueType, treatment: str, likely: str) -> Fault:
    notice, what, way_out = _SAID[reason]
    counts = " and ".join(
        f"{sum(_count(study, reason, phase, each) for phase in study.phases):,} units of {each}"
        for each in (treatment, study.experiment.control)
    )
    of_units = (each for each in study.experiment.spec.metrics if estimate_of(each) is not Estimate.WIN_RATE)
    return Fault(
        notice,
        f"At least {counts} {what} {likely}. {way_out}",
        frozenset(each.metric_id for each in of_units),
        pb.VERDICT_BLOCKER_EVENTS_REJECTED if reason == _REUSED else None,
        treatment,
    )


def _p(study: Study, reason: pb.EventRejection.ValueType, treatment: str, level: float) -> float:
    variants = study.experiment.control, treatment
    if not any(_count(study, reason, phase, each) for phase in study.phases for each in variants):
        return 1.0
    by_phase = [[_moments(study, reason, phase, each) for each in variants] for phase in study.phases]
    return p_of(study, treatment, combined(Kind.PROPORTION, by_phase), level)


def _moments(study: Study, reason: pb.EventRejection.ValueType, phase: Phase, variant: str) -> Moments:
    # As of a unit more with such an event and one more without, so that all of a variant is no certainty.
    ones = float(_count(study, reason, phase, variant) + 1)
    return Moments(study.units_in(phase, variant) + 2, 1, (ones, ones), (0.0, 0.0))


def _count(study: Study, reason: pb.EventRejection.ValueType, phase: Phase, variant: str) -> int:
    # An earlier exposure may have moved some to another variant since.
    found = study.snapshot.losing.get((reason, phase.number, variant), 0)
    return min(found, study.units_in(phase, variant))
