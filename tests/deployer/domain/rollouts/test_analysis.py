"""Expected values are by hand; error rates are of seeded simulations, and `bench/rollout_statistics.py` has more."""

import math
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.courses import NOW, SLICE, Traffic, policy, verdicts
from deployer.world import stored
from neuroweaver.deployer.domain.backend import Measured
from neuroweaver.deployer.domain.metrics.counts import Counts, Histogram, Sample, Sum, between, reported
from neuroweaver.deployer.domain.rollouts import estimates
from neuroweaver.deployer.domain.rollouts.analysis import analysed
from neuroweaver.deployer.domain.rollouts.evidence import MOST_SLICES, Evidence, Slice
from neuroweaver.v1 import deployer_pb2 as pb

ERRORS = pb.ROLLOUT_METRIC_ERROR_RATE
LATENCY = pb.ROLLOUT_METRIC_LATENCY_P95
COST = pb.ROLLOUT_METRIC_COST_PER_REQUEST
QUALITY = pb.ROLLOUT_METRIC_JUDGED_QUALITY
PASS, FAIL, HOLD = pb.ROLLOUT_VERDICT_PASS, pb.ROLLOUT_VERDICT_FAIL, pb.ROLLOUT_VERDICT_HOLD


def test_a_quantile_lies_within_its_bucket_as_prometheus_has_it():
    histogram = Histogram.of_cumulative({100: 50, 200: 90, 400: 100, math.inf: 100})
    # Rank 95 of 100: half of the way through the bucket from 200 to 400.
    assert histogram.quantile(0.95) == pytest.approx(300)
    assert histogram.quantile(0.5) == pytest.approx(100)
    assert histogram.below(300) == pytest.approx(95)
    beyond = Histogram.of_cumulative({100: 50, math.inf: 100})
    assert beyond.quantile(0.95) == 100
    assert beyond.limit(0.95, beyond_last=math.inf) == math.inf
    assert Histogram().quantile(0.95) is None


def test_empty_buckets_are_left_out_but_not_where_a_full_one_begins():
    histogram = Histogram.of({10: 0, 20: 0, 40: 0, 80: 4, 160: 0, math.inf: 0})
    assert histogram.buckets == ((40, 0), (80, 4))
    assert histogram.quantile(0.5) == pytest.approx(60)


@given(st.floats(0, 1e8), st.integers(1, 100))
def test_a_reported_latency_is_kept_within_five_percent(value, requests):
    found = reported(Sample(NOW, "", requests, latency_ms=value)).reported_latency_ms
    assert found.weight == requests
    assert found.quantile(0.5) == pytest.approx(value, rel=0.05, abs=0.14)


counts = st.builds(
    Counts,
    errors=st.builds(Sum, st.integers(0, 9), st.integers(0, 99)),
    quality=st.builds(Sum, st.integers(0, 9), st.integers(0, 99)),
    latency_ms=st.dictionaries(st.sampled_from([1.0, 2.0, 4.0, math.inf]), st.integers(0, 9)).map(
        Histogram.of
    ),
)


@given(counts, counts, counts)
def test_counts_add_up_in_any_order_and_survive_being_stored(a, b, c):
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert stored(a) == a


def measured(requests, errors=0, latency=(), missing=(), waiting=None):
    return Measured(
        1,
        requests=requests,
        errors=errors,
        latency_ms=dict(latency),
        missing_replicas=missing,
        waiting=waiting,
    )


def test_what_was_counted_between_two_looks():
    minute = timedelta(minutes=1)
    before = measured(100, 5, [(100, 90), (math.inf, 100)], waiting=1)
    after = measured(160, 8, [(100, 140), (math.inf, 160)], waiting=2)
    found = between(before, after, minute, replicas=3, replica_hour_usd=2.0)
    assert found.errors == Sum(3, 60)
    assert found.latency_ms.buckets == ((100, 50), (math.inf, 10))
    # 3 replicas for a minute at 2 USD an hour.
    assert found.cost == Sum(pytest.approx(0.1), 60)
    assert found.loaded == Sum(60, 60)
    assert between(before, measured(160, 8, waiting=0), minute).loaded == Sum()


def test_a_restart_or_another_set_of_replicas_tells_nothing():
    minute = timedelta(minutes=1)
    assert between(measured(100), measured(40), minute) == Counts()
    assert between(measured(100, 5), measured(110, 4), minute) == Counts()
    # One that was missing is back with all that it ever counted.
    assert between(measured(100, missing=("b",)), measured(5000), minute) == Counts()
    assert between(measured(100, missing=("b",)), measured(101, missing=("b",)), minute) != Counts()


def test_limits_of_a_share_are_those_of_wilson():
    # 10 of 100 at 1.96: 0.0552 to 0.1744 (Wilson 1927); many slices make Student's t normal.
    lower, upper = estimates.Share(0.1, 100, 1.0, 10**6).limits(1.959964)
    assert (lower, upper) == (pytest.approx(0.05523, abs=1e-4), pytest.approx(0.17437, abs=1e-4))
    assert estimates.Share(0.0, 100, 1.0, 10**6).limits(1.959964)[0] == 0.0


def test_failures_in_bursts_count_for_less():
    even = estimates.share([Sum(1, 10)] * 20)
    burst = estimates.share([Sum(10, 10), *[Sum(0, 10)] * 9] * 2)
    assert even.value == burst.value == 0.1
    assert even.design == 1.0
    # By hand: residuals of 9 twice and -1 18 times; 180 * 20 / 19, of 200 * 0.09 = 18 if independent.
    assert burst.design == pytest.approx(180 * 20 / 19 / 18)
    assert burst.limits(2.0)[1] > even.limits(2.0)[1]


def test_a_mean_goes_by_the_scatter_among_slices():
    found = estimates.mean([Sum(8, 10), Sum(6, 10)])
    # Residuals 1 and -1: sqrt(2 * 2 / 1) / 20.
    assert (found.value, found.std_error) == (pytest.approx(0.7), pytest.approx(0.1))
    assert estimates.mean([Sum(0.3, 3)] * 5).std_error == 0.0


def test_a_small_arm_that_saw_nothing_rare_takes_the_spread_of_the_large_one():
    small, large = estimates.Mean(1.0, 100, 0.0, 20), estimates.Mean(1.0, 400, 0.1, 20)
    assert small.cautious(large).std_error == pytest.approx(0.2)
    assert large.cautious(small).std_error == 0.1


def test_limits_of_a_quantile_where_the_data_do_not_reach():
    found = estimates.quantile([Histogram.of({100: 95, 200: 5})] * 20)
    assert found.value == pytest.approx(100)
    lower, upper = found.limits(2.0)
    assert lower < 100 < upper < 200
    few = estimates.quantile([Histogram.of({100: 1})] * 12)
    assert few.limits(4.0)[1] == math.inf


def test_slices_merge_without_losing_a_request():
    evidence = Evidence()
    for i in range(1000):
        one = Counts(errors=Sum(0, 1))
        evidence = evidence.with_counts(one, one, NOW + i * SLICE, SLICE)
        assert len(evidence.slices) <= MOST_SLICES
    whole = sum(evidence.slices, Slice())
    assert whole.stable.errors.weight == whole.candidate.errors.weight == 1000
    assert len(evidence.slices) >= MOST_SLICES // 2
    assert stored(evidence) == evidence


def looked(slices, made, *, has_baseline=True):
    """At slices of (stable, candidate)."""
    evidence = Evidence(tuple(Slice(stable, candidate) for stable, candidate in slices), NOW)
    return analysed(evidence, made, step=1, steps=1, has_baseline=has_baseline, now=NOW)


def failing(failed, requests=100):
    return Counts(errors=Sum(failed, requests))


@pytest.mark.parametrize(
    ("check", "stable", "candidate", "verdict"),
    [
        ((ERRORS, "relative", 0.1), 10, 11, PASS),
        ((ERRORS, "relative", 0.1), 10, 12, HOLD),
        ((ERRORS, "relative", 0.1), 10, 30, FAIL),
        ((ERRORS, "difference", 0.05), 10, 15, PASS),
        ((ERRORS, "difference", 0.05), 10, 40, FAIL),
        ((ERRORS, "absolute", 0.12), 0, 12, PASS),
        ((ERRORS, "absolute", 0.12), 50, 30, FAIL),
        ((ERRORS, "absolute", 0.12), 50, 13, HOLD),
    ],
)
def test_a_limit_is_kept_broken_or_not_yet_decided(check, stable, candidate, verdict):
    found = looked([(failing(stable), failing(candidate))] * 20, policy(check))
    assert found.verdict == verdict
    (result,) = found.checks
    assert (result.baseline, result.candidate) == (stable / 100, candidate / 100)
    assert result.difference.lower <= result.candidate - result.baseline <= result.difference.upper
    assert (result.candidate_requests, result.baseline_requests) == (2000, 2000)


def test_of_quality_more_is_better():
    def quality(mean, i):
        return Counts(quality=Sum(100 * (mean + 0.02 * (i % 3 - 1)), 100))

    for mean, verdict in [(0.95, PASS), (0.76, PASS), (0.70, HOLD), (0.6, FAIL)]:
        slices = [(quality(0.8, i), quality(mean, i + 1)) for i in range(20)]
        limit = 0.05 if mean != 0.70 else 0.09
        found = looked(slices, policy((QUALITY, "difference", limit)))
        assert found.verdict == verdict
    assert "at least 0.749" in found.checks[0].message


def test_costs_are_compared():
    slices = [(Counts(cost=Sum(1 + 0.01 * (i % 3), 100)), Counts(cost=Sum(2, 100))) for i in range(20)]
    assert looked(slices, policy((COST, "relative", 0.5))).verdict == FAIL
    assert looked(slices, policy((COST, "relative", 1.5))).verdict == PASS


def test_one_failed_request_holds_nobody():
    slices = [(failing(0), failing(1 if i == 0 else 0)) for i in range(20)]
    assert looked(slices, policy((ERRORS, "relative", 0.0))).verdict == PASS
    slices[1] = failing(0), failing(1)
    assert looked(slices, policy((ERRORS, "relative", 0.0))).verdict == HOLD


@pytest.mark.parametrize(
    ("slices", "part"),
    [
        ([], "the candidate has 0 requests in 0 slices of time and the stable revision has 0"),
        ([(failing(0), failing(50, 50))] * 9, "the candidate has 450 requests in 9 slices"),
        ([(failing(0), failing(5, 5))] * 19, "the candidate has 95 requests"),
        # What the candidate did while the stable revision had no traffic is not compared with another time.
        ([(Counts(), failing(50))] * 30, "the stable revision has 0 requests"),
    ],
)
def test_too_few_data_hold(slices, part):
    found = looked(slices, policy((ERRORS, "difference", 0.01)))
    assert found.verdict == HOLD
    assert part in found.checks[0].message


def test_without_a_baseline_only_absolute_limits_count():
    slices = [(Counts(), failing(30))] * 20
    made = policy((ERRORS, "relative", 0.1), (ERRORS, "difference", 0.0))
    assert looked(slices, made, has_baseline=False).verdict == PASS
    made.checks.add(metric=ERRORS, absolute=0.1)
    found = looked(slices, made, has_baseline=False)
    assert [each.verdict for each in found.checks] == [PASS, PASS, FAIL]
    assert looked([], made, has_baseline=False).verdict == HOLD


def test_what_a_router_saw_counts_more_than_what_the_replicas_saw():
    both = (
        Counts(errors=Sum(0, 100), reported_errors=Sum(40, 100)),
        Counts(errors=Sum(0, 100), reported_errors=Sum(1, 100)),
    )
    slices = [(both[1], both[0])] * 20
    assert looked(slices, policy((ERRORS, "difference", 0.05))).verdict == FAIL
    # Of one revision alone it says nothing.
    slices = [(Counts(errors=Sum(0, 100)), both[0])] * 20
    assert looked(slices, policy((ERRORS, "difference", 0.05))).verdict == PASS


def test_the_verdict_over_all_checks_is_the_worst_one():
    slices = [(failing(10), failing(30))] * 20
    good, open_, bad = ((ERRORS, "absolute", 0.5), (ERRORS, "absolute", 0.299), (ERRORS, "absolute", 0.1))
    assert looked(slices, policy(good)).verdict == PASS
    assert looked(slices, policy(good, open_)).verdict == HOLD
    assert looked(slices, policy(open_, bad, good)).verdict == FAIL


def test_more_checks_and_steps_ask_for_more_evidence():
    slices = tuple(Slice(failing(10), failing(18)) for _ in range(20))
    made = policy((ERRORS, "difference", 0.0))

    def confidence(steps):
        found = analysed(Evidence(slices, NOW), made, step=1, steps=steps, has_baseline=True, now=NOW)
        return found.checks[0].difference

    assert confidence(1).confidence == pytest.approx(0.95)
    assert confidence(5).confidence == pytest.approx(0.99)
    assert confidence(5).lower < confidence(1).lower


def rates(traffic, made, runs, slices, seed):
    """Shares of runs that failed, and that passed at the last look."""
    rng = np.random.default_rng(seed)
    found = [verdicts(traffic, made, slices, rng) for _ in range(runs)]
    return (sum(FAIL in each for each in found) / runs, sum(each[-1] == PASS for each in found) / runs)


CHECKS = (ERRORS, "difference", 0.0), (LATENCY, "relative", 0.0), (QUALITY, "difference", 0.0)


def test_a_candidate_exactly_at_its_limits_is_rarely_called_broken_however_often_one_looks():
    # At most 5 % are promised for all looks and checks; naive looks would call a third of them broken.
    failed, _ = rates(Traffic(), policy(*CHECKS), runs=40, slices=80, seed=1)
    assert failed <= 0.05
    failed, _ = rates(Traffic(failing=(0.04, 0.04), bursts=10), policy(CHECKS[0]), runs=60, slices=80, seed=2)
    assert failed <= 0.05


def test_a_candidate_that_is_worse_is_found():
    made = policy((ERRORS, "difference", 0.02), (LATENCY, "relative", 0.2), (QUALITY, "difference", 0.05))
    for worse in (Traffic(failing=(0.01, 0.10)), Traffic(median_ms=(110, 220)), Traffic(quality=(0.8, 0.65))):
        failed, _ = rates(worse, made, runs=15, slices=80, seed=3)
        assert failed == 1.0


def test_a_candidate_like_the_stable_revision_passes():
    made = policy((ERRORS, "difference", 0.02), (LATENCY, "relative", 0.2), (QUALITY, "difference", 0.05))
    failed, passed = rates(Traffic(), made, runs=30, slices=40, seed=4)
    assert (failed, passed) == (0.0, 1.0)
