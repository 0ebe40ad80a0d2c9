"""Guardrails that are shown to be breached, whatever the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from neuroweaver.experiment.analysis import criteria
from neuroweaver.experiment.analysis.study import Study
from neuroweaver.mesh.wire.messages import message_of
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import experiment_pb2 as pb

LEAST_UNITS: Final = 100
"""In the control and the treatment, before which an asymptotic bound is not relied upon; or the minimum for
a verdict, if that is less.
"""


def reason_of(breach: pb.GuardrailBreached) -> str:
    return (
        f"{breach.variant_id} is shown to be worse on {breach.guardrail.metric_id} than its guardrail allows:"
        f" the effect is within {breach.interval.lower:.4g} and {breach.interval.upper:.4g}"
    )


def breached(study: Study) -> Sequence[pb.GuardrailBreached]:
    """By the always-valid bound, at most once in a while wrong: over all guardrails, all treatments and all
    looks together, the chance to see one where there is none is at most the level of the experiment.

    The interval's confidence is such that it excludes an absolute margin.
    """
    rails = criteria.guardrails(study)
    level = (1 - study.confidence) / max(1, len(rails) * len(study.experiment.treatments))
    least = min(LEAST_UNITS, study.experiment.spec.min_units_per_variant)
    breaches = []
    for requirement, rail in zip(rails, study.experiment.spec.guardrails, strict=True):
        for treatment in study.candidates:
            comparison = study.comparisons[rail.metric_id, treatment]
            if comparison is None or min(map(study.units, (study.experiment.control, treatment))) < least:
                continue
            p = requirement.p_failed_always_valid(comparison, 1 - level)
            if p is None or p > level:
                continue
            view = comparison.always_valid(1 - min(2 * level, 0.99))
            if view is not None:
                interval = message_of(common_pb2.Interval, view.absolute)
                breaches.append(pb.GuardrailBreached(guardrail=rail, variant_id=treatment, interval=interval))
    return breaches
