"""What should be done, and why.

Error control, at the level 1 - confidence, by one-sided tests of the method that the experiment names:

SHIP. A treatment must fulfil all of `all_of` and every guardrail, which needs no correction: the largest of
their p-values is one of the whole (intersection-union, Berger 1982, Technometrics 24:295). `any_of` enters
with the smallest of its p-values by Holm. The p-values of the treatments go through Holm once more, so that
the chance to ship any treatment that does not fulfil the rule is at most the level. The criteria show the
p-values with the factors of both steps: a treatment is shown to fulfil the rule exactly if they all are met.

KEEP. A treatment is shown to fail by any of its conjuncts (`any_of` as a whole is one: all of it must be
shown to fail), so the level is divided by their number. Every treatment must fail, which needs no further
correction: the chance to keep the control though a treatment fulfils the rule is at most the level.

The experiment's own correction is for the estimates and does not loosen this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from neuroweaver.experiment.analysis import event_use, timing, winsorizing
from neuroweaver.experiment.analysis.criteria import Requirement, requirements
from neuroweaver.experiment.analysis.study import Study
from neuroweaver.experiment.analysis.timing import Fault
from neuroweaver.experiment.domain.metrics import Estimate, estimate_of
from neuroweaver.statistics.multiplicity import holm
from neuroweaver.v1 import experiment_pb2 as pb

FOR_GOOD: Final = {
    pb.VERDICT_BLOCKER_SAMPLE_RATIO,
    pb.VERDICT_BLOCKER_EVENTS_BEFORE_EXPOSURE,
    pb.VERDICT_BLOCKER_EVENTS_REJECTED,
    pb.VERDICT_BLOCKER_EVENTS_AFTER_WINDOW,
}
"""Blockers that more units do not remove: the data are flawed."""


@dataclass(frozen=True)
class Finding:
    """A requirement of a treatment. p_met, p_failed: with every factor in, to be held against the level;
    None without data.
    """

    requirement: Requirement
    treatment: str
    p_met: float | None
    p_failed: float | None
    level: float

    @property
    def is_met(self) -> bool:
        return self.p_met is not None and self.p_met <= self.level

    @property
    def is_failed(self) -> bool:
        return self.p_failed is not None and self.p_failed <= self.level


@dataclass(frozen=True)
class Judged:
    """A treatment by the rule. factor: of Holm over the treatments."""

    treatment: str
    findings: Sequence[Finding]
    factor: int

    @property
    def alternatives(self) -> Sequence[Finding]:
        """Those of `any_of`."""
        return [finding for finding in self.findings if finding.requirement.is_alternative]

    @property
    def conjuncts(self) -> Sequence[Finding]:
        """Those that must all be met."""
        return [finding for finding in self.findings if not finding.requirement.is_alternative]

    @property
    def is_shown_to_fulfil(self) -> bool:
        is_any_met = not self.alternatives or any(finding.is_met for finding in self.alternatives)
        return is_any_met and all(finding.is_met for finding in self.conjuncts)

    @property
    def is_shown_to_fail(self) -> bool:
        is_none_left = bool(self.alternatives) and all(finding.is_failed for finding in self.alternatives)
        return is_none_left or any(finding.is_failed for finding in self.conjuncts)


def judge(study: Study) -> Sequence[Judged]:
    """Every treatment by the rule, in their order."""
    rule, level = requirements(study), 1 - study.confidence
    conjuncts = sum(not each.is_alternative for each in rule) + any(each.is_alternative for each in rule)
    met = {each: _shared([r.p_met(study, each) for r in rule], rule) for each in study.experiment.treatments}
    factors = _factors({each: _whole(met[each], rule) for each in met}, level)
    return [
        Judged(
            treatment,
            [
                Finding(
                    requirement,
                    treatment,
                    _times(met[treatment][index], factors[treatment]),
                    _times(requirement.p_failed(study, treatment), conjuncts),
                    level,
                )
                for index, requirement in enumerate(rule)
            ],
            factors[treatment],
        )
        for treatment in study.experiment.treatments
    ]


def verdict(
    study: Study, results: pb.ExperimentResults, judged: Sequence[Judged], faults: Sequence[Fault]
) -> pb.ExperimentVerdict:
    """All but the forecast. results: of the same study, for the split; faults: of its times."""
    result = pb.ExperimentVerdict(
        decision=pb.DECISION_INCONCLUSIVE,
        method=study.experiment.spec.verdict_method,
        criteria=[_criterion(each) for treatment in judged for each in treatment.findings],
    )
    barriers = [
        *_split(study, results),
        *_outdated(study),
        *_mistimed(study, faults),
        *_uncapped(study),
        *_short(study),
    ]
    candidates = [each for each in judged if each.treatment in study.candidates]
    shippable = [each for each in candidates if each.is_shown_to_fulfil]
    if barriers:
        result.gaps.extend([*barriers, *_missing(study, candidates)])
        result.reason = barriers[0].message
    elif shippable:
        winner = max(shippable, key=lambda each: _gain(study, each.treatment))
        result.decision, result.variant_id = pb.DECISION_SHIP, winner.treatment
        result.reason = _why_ship(study, winner, shippable)
    elif candidates and all(each.is_shown_to_fail for each in candidates):
        result.decision, result.variant_id = pb.DECISION_KEEP, study.experiment.control
        result.reason = _why_keep(candidates)
    else:
        result.gaps.extend([*_missing(study, candidates), *_uncertain(candidates)])
        result.reason = result.gaps[0].message if result.gaps else "No treatment gets any units."
    return result


def _shared(p_values: Sequence[float | None], rule: Sequence[Requirement]) -> Sequence[float | None]:
    """With Holm's factor where alternatives share the level; one without data keeps its place."""
    result = list(p_values)
    alternatives = [index for index, each in enumerate(rule) if each.is_alternative]
    family = [1.0 if (p := p_values[index]) is None else p for index in alternatives]
    for index, adjusted in zip(alternatives, holm(family), strict=True):
        if p_values[index] is not None:
            result[index] = adjusted
    return result


def _whole(p_values: Sequence[float | None], rule: Sequence[Requirement]) -> float:
    """Of the rule as a whole."""
    pairs = [(1.0 if p is None else p, each.is_alternative) for p, each in zip(p_values, rule, strict=True)]
    alternatives = [p for p, is_alternative in pairs if is_alternative]
    return max([min(alternatives, default=0.0), *(p for p, is_alternative in pairs if not is_alternative)])


def _factors(p_values: Mapping[str, float], level: float) -> Mapping[str, int]:
    """Holm's, which falls by one with every treatment that is shown, in the order of their p-values."""
    factor, result = len(p_values), dict.fromkeys(p_values, len(p_values))
    is_going_on = True
    for treatment in sorted(p_values, key=p_values.__getitem__):
        result[treatment] = factor
        is_going_on = is_going_on and p_values[treatment] * factor <= level
        factor -= is_going_on
    return result


def _times(p: float | None, factor: int) -> float | None:
    return None if p is None else min(1.0, p * factor)


def _criterion(finding: Finding) -> pb.CriterionResult:
    return pb.CriterionResult(
        variant_id=finding.treatment,
        criterion=finding.requirement.criterion,
        is_guardrail=finding.requirement.is_guardrail,
        is_met=finding.is_met,
        is_failed=finding.is_failed,
        adjusted_p_value=finding.p_met,
    )


def _gain(study: Study, treatment: str) -> float:
    """How much better it looks on the target metric."""
    target = study.experiment.metric(study.experiment.spec.target_metric_id)
    comparison = study.comparisons.get((target.metric_id, treatment)) if target else None
    if target is None or comparison is None:
        return 0.0
    return comparison.absolute if target.goal == pb.METRIC_GOAL_INCREASE else -comparison.absolute


def _split(study: Study, results: pb.ExperimentResults) -> list[pb.VerdictGap]:
    ratio = results.sample_ratio
    if not ratio.is_mismatch:
        return []
    message = (
        f"The units are not split as the weights say (always-valid p {ratio.p_value:.2g}, level"
        f" {ratio.level:g}): something loses or doubles units of one variant, so that no comparison can be"
        " trusted. Find the cause and begin a new experiment."
    )
    if rejected := timing.rejected_exposures(study, study.variants):
        message += f" {rejected}"
    return [pb.VerdictGap(blocker=pb.VERDICT_BLOCKER_SAMPLE_RATIO, message=message)]


def _outdated(study: Study) -> list[pb.VerdictGap]:
    """Metrics of the rule that an earlier version counted, whose clocks nothing is known of."""
    wanted = dict.fromkeys(each.metric_id for each in requirements(study))
    return [
        pb.VerdictGap(
            blocker=pb.VERDICT_BLOCKER_RECOUNT,
            message=(
                f"The events of {metric_id} were counted by an earlier version, which did not check their"
                f" times or capped them in another way. {event_use.recount(study)}"
            ),
            metric_id=metric_id,
        )
        for metric_id in wanted
        if metric_id in study.snapshot.outdated
    ]


def _mistimed(study: Study, faults: Sequence[Fault]) -> list[pb.VerdictGap]:
    """Those of metrics of the rule."""
    wanted = list(dict.fromkeys(each.metric_id for each in requirements(study)))
    return [
        pb.VerdictGap(
            blocker=fault.blocker, message=fault.message, variant_id=fault.treatment, metric_id=metric_ids[0]
        )
        for fault in faults
        if fault.blocker and (metric_ids := [each for each in wanted if each in fault.metric_ids])
    ]


def _uncapped(study: Study) -> list[pb.VerdictGap]:
    """Metrics of the rule whose caps by quantiles are not set yet: they would mean another thing later."""
    metric_ids = dict.fromkeys(each.metric_id for each in requirements(study))
    return [
        pb.VerdictGap(blocker=pb.VERDICT_BLOCKER_WINSORIZATION, message=message, metric_id=metric_id)
        for metric_id in metric_ids
        if (message := winsorizing.calibrating(study, metric_id))
    ]


def _short(study: Study) -> list[pb.VerdictGap]:
    least = study.experiment.spec.min_units_per_variant
    needs = [(least, pb.VERDICT_BLOCKER_MINIMUM_SAMPLE, "the minimum for any verdict")]
    if study.is_fixed_horizon:
        what = "the planned sample of its fixed-horizon test"
        needs.append((study.planned, pb.VERDICT_BLOCKER_HORIZON, what))
    return [
        pb.VerdictGap(
            blocker=blocker,
            message=f"{variant} has {units} units; {what} is {needed}.",
            variant_id=variant,
            missing_units=needed - units,
        )
        for needed, blocker, what in needs
        for variant in (study.experiment.control, *study.candidates)
        if (units := study.units(variant)) < needed
    ]


def _missing(study: Study, judged: Sequence[Judged]) -> list[pb.VerdictGap]:
    """Metrics of the rule without enough data yet."""
    lacking = {
        (each.requirement.metric_id, each.treatment): None
        for treatment in judged
        if not treatment.is_shown_to_fail
        for each in treatment.findings
        if each.p_met is None
    }
    return [
        pb.VerdictGap(
            blocker=pb.VERDICT_BLOCKER_MISSING_METRIC,
            message=_why_missing(study, metric_id, treatment),
            variant_id=treatment,
            metric_id=metric_id,
        )
        for metric_id, treatment in lacking
    ]


def _why_missing(study: Study, metric_id: str, treatment: str) -> str:
    if study.comparisons[metric_id, treatment] is not None:
        return (
            f"All values of {metric_id} in {treatment} and the control are equal, so that their uncertainty"
            " cannot be estimated."
        )
    metric = study.experiment.metric(metric_id)
    if metric and estimate_of(metric) is not Estimate.WIN_RATE and not study.events(metric_id):
        return f"No event of {metric_id} has been received for any variant."
    return f"There are too few data on {metric_id} in {treatment} or the control."


def _uncertain(judged: Sequence[Judged]) -> list[pb.VerdictGap]:
    """Treatments with data on every metric that are still inconclusive."""
    return [
        pb.VerdictGap(
            blocker=pb.VERDICT_BLOCKER_UNCERTAIN,
            message=f"{each.treatment}: the data so far neither show nor rule out {_open(each)}.",
            variant_id=each.treatment,
        )
        for each in judged
        if not each.is_shown_to_fail and all(finding.p_met is not None for finding in each.findings)
    ]


def _open(judged: Judged) -> str:
    waiting = [each for each in judged.findings if not each.is_met and not each.is_failed]
    return " and ".join(dict.fromkeys(_claim(each.requirement) for each in waiting)) or "the rule"


def _claim(requirement: Requirement) -> str:
    criterion = requirement.criterion
    is_superiority = criterion.HasField("superiority")
    size = criterion.superiority if is_superiority else criterion.non_inferiority
    amount = f"{size.relative:.4g} of the control" if size.HasField("relative") else f"{size.absolute:.4g}"
    if is_superiority:
        by = "" if amount == "0" else f" by more than {amount}"
        return f"that {criterion.metric_id} is better{by}"
    return f"that {criterion.metric_id} is worse by less than {amount}"


def _why_ship(study: Study, winner: Judged, shippable: Sequence[Judged]) -> str:
    shown = [each for each in winner.findings if each.is_met]
    claims = ", ".join(f"{_claim(each.requirement)} (p {each.p_met:.2g})" for each in shown)
    text = f"{winner.treatment} meets the decision rule: it is shown {claims}."
    if len(shippable) > 1:
        text += (
            f" Of the {len(shippable)} that do, it looks best on {study.experiment.spec.target_metric_id}."
        )
    return text


def _why_keep(judged: Sequence[Judged]) -> str:
    parts = []
    for treatment in judged:
        failed = [each for each in treatment.findings if each.is_failed]
        claims = " and ".join(dict.fromkeys(_claim(each.requirement) for each in failed))
        parts.append(f"{treatment.treatment} is shown to fail: it does not hold {claims}.")
    return " ".join(parts)
