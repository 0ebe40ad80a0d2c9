"""Steps of a canary with made-up traffic: how often an analysis errs, and how soon it finds what is wrong."""

import math
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from neuroweaver.deployer.domain.metrics.counts import Counts, Histogram, Sum
from neuroweaver.deployer.domain.rollouts.analysis import analysed
from neuroweaver.deployer.domain.rollouts.evidence import Evidence
from neuroweaver.v1 import deployer_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SLICE = timedelta(seconds=7.5)
BOUNDS = np.array([25, 50, 100, 200, 400, 800, 1600, 3200, math.inf])


@dataclass(frozen=True)
class Traffic:
    """requests: a slice, of both together. weight: the candidate's share. failing, median_ms, quality: of stable
    and candidate.

    bursts: the size of bursts in which failures come; 1: each by itself.
    """

    requests: float = 100.0
    weight: float = 0.2
    failing: tuple[float, float] = (0.01, 0.01)
    median_ms: tuple[float, float] = (110.0, 110.0)
    quality: tuple[float, float] = (0.8, 0.8)
    bursts: int = 1

    def counts(self, arm, rng):
        share = self.weight if arm else 1 - self.weight
        requests = int(rng.poisson(self.requests * share))
        failed = min(requests, self.bursts * int(rng.poisson(requests * self.failing[arm] / self.bursts)))
        latencies = np.searchsorted(BOUNDS, rng.lognormal(math.log(self.median_ms[arm]), 0.6, requests))
        histogram = Counter(float(BOUNDS[i]) for i in latencies)
        judged = rng.normal(self.quality[arm], 0.2, requests).clip(0, 1).sum()
        return Counts(
            errors=Sum(failed, requests),
            latency_ms=Histogram.of({float(bound): histogram[bound] for bound in BOUNDS.tolist()}),
            quality=Sum(float(judged), requests),
        )


def policy(*checks, confidence=0.95, least=100):
    made = pb.CanaryAnalysis(min_requests=least, confidence=confidence)
    for metric, limit, value in checks:
        made.checks.add(metric=metric, **{limit: value})
    return made


def verdicts(traffic, made, slices, rng, *, every=4, steps=1, has_baseline=True):
    """One after each look, every so many slices."""
    evidence, found = Evidence(), []
    for number in range(1, slices + 1):
        now = NOW + number * SLICE
        counts = traffic.counts(0, rng) if has_baseline else Counts(), traffic.counts(1, rng)
        evidence = evidence.with_counts(*counts, now, SLICE)
        if number % every == 0:
            look = analysed(evidence, made, step=1, steps=steps, has_baseline=has_baseline, now=now)
            found.append(look.verdict)
            if look.verdict == pb.ROLLOUT_VERDICT_FAIL:
                break
    return found
