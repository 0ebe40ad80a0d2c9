"""What is to be shown of a treatment, as one-sided tests of its effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuroweaver.experiment.analysis.comparison import Comparison
from neuroweaver.experiment.analysis.study import Study
from neuroweaver.statistics.estimate import Bound
from neuroweaver.v1 import experiment_pb2 as pb


@dataclass(frozen=True)
class Requirement:
    """A criterion of one metric; a guardrail is one of non-inferiority. is_alternative: one of `any_of`.

    It holds if the effect lies above the bound (`above`), or else below.
    """

    criterion: pb.Criterion
    bound: Bound
    above: bool
    is_guardrail: bool = False
    is_alternative: bool = False

    @property
    def metric_id(self) -> str:
        return self.criterion.metric_id

    def p_met(self, study: Study, treatment: str) -> float | None:
        """Small if it is shown to hold; None without data. By the method of the verdict."""
        return self._p(study, treatment, above=self.above)

    def p_failed(self, study: Study, treatment: str) -> float | None:
        """Small if it is shown not to hold; None without data."""
        return self._p(study, treatment, above=not self.above)

    def p_failed_always_valid(self, comparison: Comparison, confidence: float) -> float | None:
        """Whatever the method of the verdict."""
        return comparison.p_always_valid(self.bound, confidence, above=not self.above)

    def _p(self, study: Study, treatment: str, *, above: bool) -> float | None:
        comparison = study.comparisons[self.metric_id, treatment]
        if comparison is None:
            return None
        return study.p_one_sided(comparison, self.bound, above=above)


def requirements(study: Study) -> Sequence[Requirement]:
    """In the order of the rule: `all_of`, `any_of`, guardrails."""
    rule = study.experiment.spec.decision_rule
    return [
        *(_requirement(study, each) for each in rule.all_of),
        *(_requirement(study, each, is_alternative=True) for each in rule.any_of),
        *guardrails(study),
    ]


def guardrails(study: Study) -> Sequence[Requirement]:
    return [
        _requirement(
            study, pb.Criterion(metric_id=each.metric_id, non_inferiority=each.margin), is_guardrail=True
        )
        for each in study.experiment.spec.guardrails
    ]


def _requirement(
    study: Study, criterion: pb.Criterion, *, is_guardrail: bool = False, is_alternative: bool = False
) -> Requirement:
    metric = study.experiment.metric(criterion.metric_id)
    above = metric is None or metric.goal == pb.METRIC_GOAL_INCREASE
    is_superiority = criterion.HasField("superiority")
    size = criterion.superiority if is_superiority else criterion.non_inferiority
    is_relative = size.HasField("relative")
    amount = size.relative if is_relative else size.absolute
    # Better by more than the amount, or worse by less; better is up or down as the goal says.
    sign = 1 if is_superiority == above else -1
    return Requirement(criterion, Bound(sign * amount, is_relative), above, is_guardrail, is_alternative)
