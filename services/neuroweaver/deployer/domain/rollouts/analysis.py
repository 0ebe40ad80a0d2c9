"""Whether a candidate keeps its limits: each check against the stable revision over the same time.

A check FAILs only when its limit is shown to be broken, by an interval that holds over all looks, checks and
steps of the rollout: asymptotic confidence sequences (`statistics.sequential`), the chance of an error
shared evenly among checks and steps (Bonferroni). It PASSes when there are enough requests and the values, as
they look, are within the limit: to ask for proof instead would hold a flawless candidate for hours, for few
services have the requests to show a tenth of an error rate. In between it HOLDs: a candidate that looks to
be beyond a limit, though it is not shown to be, does not come further until more requests decide.

Differences come from the limits of both values (`estimates`) by MOVER.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from neuroweaver.deployer.domain.rollouts import estimates
from neuroweaver.deployer.domain.rollouts.estimates import Estimate, Exact, Mean, Scaled, Share
from neuroweaver.deployer.domain.rollouts.evidence import Evidence, Slice
from neuroweaver.statistics import mover, sequential
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import deployer_pb2 as pb

# With fewer the scatter among slices says little.
LEAST_SLICES: Final = 10
# Intervals are tightest at so many times the requests that are needed at least.
_TIGHTEST: Final = 10
_ROUNDING: Final = 1e-12


@dataclass(frozen=True)
class _Metric:
    """counted, reported: fields of Counts; what is reported wins, since a router also sees the requests that
    never reached a replica.
    """

    name: str
    counted: str | None
    reported: str
    estimate: Callable[[Sequence[Any]], Estimate | None]
    shown: Callable[[float], str]
    is_more_better: bool = False


_METRICS: Final[Mapping[pb.RolloutMetric.ValueType, _Metric]] = {
    pb.ROLLOUT_METRIC_ERROR_RATE: _Metric(
        "error rate", "errors", "reported_errors", estimates.share, lambda value: f"{100 * value:.2f} %"
    ),
    pb.ROLLOUT_METRIC_LATENCY_P95: _Metric(
        "p95 latency",
        "latency_ms",
        "reported_latency_ms",
        estimates.quantile,
        lambda value: f"{value:.0f} ms",
    ),
    pb.ROLLOUT_METRIC_COST_PER_REQUEST: _Metric(
        "cost per request", "cost", "reported_cost", estimates.mean, lambda value: f"{value:.6g} USD"
    ),
    pb.ROLLOUT_METRIC_JUDGED_QUALITY: _Metric(
        "judged quality", None, "quality", estimates.mean, lambda value: f"{value:.3f}", is_more_better=True
    ),
}


@dataclass(frozen=True)
class _Arm:
    """A metric of one revision. slices: those that had anything of it."""

    estimate: Estimate | None
    slices: int

    @property
    def requests(self) -> float:
        return self.estimate.requests if self.estimate is not None else 0.0

    def is_enough(self, least: int) -> bool:
        return self.requests >= least and self.slices >= LEAST_SLICES


@dataclass(frozen=True)
class _Limit:
    """Kept while `candidate - share * baseline` is at most `shift`; where more is better: at least."""

    share: float
    shift: float
    is_more_better: bool

    @classmethod
    def of(cls, check: pb.CanaryCheck) -> _Limit:
        is_more_better = _METRICS[check.metric].is_more_better
        worse = -1 if is_more_better else 1
        match check.WhichOneof("limit"):
            case "relative":
                return cls(max(0.0, 1 + worse * check.relative), 0.0, is_more_better)
            case "difference":
                return cls(1.0, worse * check.difference, is_more_better)
            case _:
                return cls(0.0, check.absolute, is_more_better)

    def excess(self, candidate: float, baseline: float) -> float:
        """By how much it is broken; negative if it is kept."""
        beyond = candidate - self.share * baseline - self.shift
        return -beyond if self.is_more_better else beyond

    def is_shown_broken(self, candidate: Estimate, baseline: mover.Estimate, boundary: float) -> bool:
        """Whether no value within so many standard errors keeps it."""
        scaled = Scaled(baseline, self.share) if self.share else Exact(0.0)
        lower, upper = mover.difference(scaled, candidate, boundary)
        return upper < self.shift if self.is_more_better else lower > self.shift


def analysed(
    evidence: Evidence, policy: pb.CanaryAnalysis, *, step: int, steps: int, has_baseline: bool, now: datetime
) -> pb.RolloutAnalysis:
    """A look. evidence: of the present step. has_baseline: False while the stable revision is broken, so that
    only absolute limits count.
    """
    level = (1 - policy.confidence) / (len(policy.checks) * max(1, steps))
    results = [
        _checked(check, evidence.slices, policy.min_requests, level, has_baseline) for check in policy.checks
    ]
    analysis = pb.RolloutAnalysis(
        verdict=overall([result.verdict for result in results]), checks=results, step=step
    )
    analysis.time.FromDatetime(now)
    return analysis


def overall(verdicts: Sequence[pb.RolloutVerdict.ValueType]) -> pb.RolloutVerdict.ValueType:
    for decisive in (pb.ROLLOUT_VERDICT_FAIL, pb.ROLLOUT_VERDICT_HOLD):
        if decisive in verdicts:
            return decisive
    return pb.ROLLOUT_VERDICT_PASS


def _checked(
    check: pb.CanaryCheck, slices: Sequence[Slice], least: int, level: float, has_baseline: bool
) -> pb.CheckResult:
    metric, limit = _METRICS[check.metric], _Limit.of(check)
    stable, candidate = _arms(metric, slices, has_baseline)
    result = pb.CheckResult(
        check=check,
        candidate_requests=round(candidate.requests),
        baseline_requests=round(stable.requests),
        candidate=candidate.estimate.value if candidate.estimate is not None else None,
        baseline=stable.estimate.value if stable.estimate is not None else None,
    )
    is_comparable = candidate.is_enough(least) and stable.is_enough(least)
    boundary = _boundary(_harmonic(stable, candidate), least, level) if is_comparable else math.inf
    if is_comparable and candidate.estimate is not None and stable.estimate is not None:
        lower, upper = mover.difference(stable.estimate, candidate.estimate, boundary)
        # The data may not reach as far as the limit of an extreme quantile.
        if math.isfinite(lower) and math.isfinite(upper):
            result.difference.CopyFrom(common_pb2.Interval(lower=lower, upper=upper, confidence=1 - level))
    arms = {"candidate": candidate, "stable revision": stable}
    baseline: mover.Estimate | None = stable.estimate
    if check.WhichOneof("limit") == "absolute":
        arms, baseline = {"candidate": candidate}, Exact(0.0)
        boundary = _boundary(candidate.requests, least, level) if candidate.is_enough(least) else math.inf
    elif not has_baseline:
        result.verdict = pb.ROLLOUT_VERDICT_PASS
        result.message = (
            f"The {metric.name} is not compared: the stable revision has no healthy replica, so only"
            " absolute limits and thresholds count."
        )
        return result
    if (
        candidate.estimate is None
        or baseline is None
        or not all(arm.is_enough(least) for arm in arms.values())
    ):
        result.verdict, result.message = pb.ROLLOUT_VERDICT_HOLD, _too_few(metric, arms, least)
        return result
    result.verdict = _verdict(limit, candidate.estimate, baseline, boundary)
    value, word = metric.shown(candidate.estimate.value), "least" if metric.is_more_better else "most"
    against = f" against {metric.shown(baseline.value)}" if "stable revision" in arms else ""
    allowed = metric.shown(limit.share * baseline.value + limit.shift)
    result.message = f"The {metric.name} is {value}{against}; {_WORDS[result.verdict]} at {word} {allowed}."
    return result


_WORDS: Final = {
    pb.ROLLOUT_VERDICT_PASS: "it keeps the limit of",
    pb.ROLLOUT_VERDICT_FAIL: "it is shown to break the limit of",
    pb.ROLLOUT_VERDICT_HOLD: "it looks to be beyond, and is not yet shown to break, the limit of",
}


def _verdict(
    limit: _Limit, candidate: Estimate, baseline: mover.Estimate, boundary: float
) -> pb.RolloutVerdict.ValueType:
    excess = limit.excess(candidate.value, baseline.value)
    # One failed request may befall anybody: by itself it holds no rollout for good.
    allowed = 1 / candidate.requests if isinstance(candidate, Share) else 0.0
    if excess > _ROUNDING and limit.is_shown_broken(candidate, baseline, boundary):
        return pb.ROLLOUT_VERDICT_FAIL
    if excess <= allowed + _ROUNDING:
        return pb.ROLLOUT_VERDICT_PASS
    return pb.ROLLOUT_VERDICT_HOLD


def _too_few(metric: _Metric, arms: Mapping[str, _Arm], least: int) -> str:
    lacking = [
        f"the {name} has {arm.requests:.0f} requests in {arm.slices} slices of time"
        for name, arm in arms.items()
        if not arm.is_enough(least)
    ]
    return (
        f"Too little data on the {metric.name}: {' and '.join(lacking)};"
        f" {least} requests in {LEAST_SLICES} slices are needed."
    )


def _arms(metric: _Metric, slices: Sequence[Slice], has_baseline: bool) -> tuple[_Arm, _Arm]:
    """Stable and candidate; while there is a baseline, only of slices in which both had any of it."""
    for source in (metric.reported, metric.counted):
        if source is None:
            continue
        pairs = [(getattr(part.stable, source), getattr(part.candidate, source)) for part in slices]
        used = [
            (stable, candidate)
            for stable, candidate in pairs
            if _has_any(candidate) and (_has_any(stable) or not has_baseline)
        ]
        if used:
            break
    stable = [part for part, _ in used if _has_any(part)]
    candidate = [part for _, part in used]
    a, b = metric.estimate(stable), metric.estimate(candidate)
    if isinstance(a, Mean) and isinstance(b, Mean):
        a, b = a.cautious(b), b.cautious(a)
    return _Arm(a, len(stable)), _Arm(b, len(candidate))


def _has_any(part: Any) -> bool:
    return bool(part != type(part)())


def _harmonic(stable: _Arm, candidate: _Arm) -> float:
    return 2 / (1 / stable.requests + 1 / candidate.requests)


def _boundary(requests: float, least: int, level: float) -> float:
    return float(sequential.boundary(sequential.mixing(requests, _TIGHTEST * least, level), level))
