"""Everything that is said of an experiment's data at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from neuroweaver.experiment.analysis.estimates import analyse
from neuroweaver.experiment.analysis.forecast import forecast
from neuroweaver.experiment.analysis.guardrails import breached
from neuroweaver.experiment.analysis.notices import notices
from neuroweaver.experiment.analysis.soundness import faults, unsound
from neuroweaver.experiment.analysis.study import Study, study
from neuroweaver.experiment.analysis.verdict import FOR_GOOD, judge, verdict
from neuroweaver.experiment.domain.model import PAUSED, RUNNING, Experiment
from neuroweaver.experiment.domain.snapshot import Snapshot
from neuroweaver.v1 import experiment_pb2 as pb


@dataclass(frozen=True)
class Report:
    """results: with the verdict. is_held: whether the ramp-up has to stay where it is."""

    study: Study
    results: pb.ExperimentResults
    breaches: Sequence[pb.GuardrailBreached]

    @property
    def is_held(self) -> bool:
        holding = {*FOR_GOOD, pb.VERDICT_BLOCKER_RECOUNT}
        is_flawed = any(gap.blocker in holding for gap in self.results.verdict.gaps)
        return bool(self.breaches) or is_flawed


def report(
    experiment: Experiment,
    snapshot: Snapshot,
    *,
    now: datetime,
    phase: int = 0,
    previous: pb.SampleRatioResult | None = None,
) -> Report:
    """phase: 0 for all. previous: what the test of the split said last, over all phases; it keeps that.

    Raises OutOfRange if there is no such phase.
    """
    asked = study(experiment, snapshot, phase)
    results = analyse(asked, now=now, phase=phase, previous=previous)
    judged = judge(asked)
    mistimed = faults(asked)
    results.verdict.CopyFrom(verdict(asked, results, judged, mistimed))
    expected = forecast(asked, results.verdict, judged, now)
    if expected is not None:
        results.verdict.forecast.CopyFrom(expected)
    flawed = unsound(asked, mistimed)
    breaches = [each for each in breached(asked) if each.guardrail.metric_id not in flawed]
    complete = Report(asked, results, breaches)
    is_ramping = experiment.ramp is not None and experiment.ramp.step < len(experiment.spec.ramp)
    is_held = is_ramping and complete.is_held and experiment.state in {RUNNING, PAUSED}
    results.notices.extend(notices(asked, results, mistimed, is_ramp_held=is_held))
    return complete
