from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.world import stored
from neuroweaver.deployer.domain.defaults import filled
from neuroweaver.deployer.domain.metrics.counts import Counts, Histogram, Sample, Sum, reported, total
from neuroweaver.deployer.domain.metrics.health import Serving, judged
from neuroweaver.deployer.domain.metrics.thresholds import described, evaluated
from neuroweaver.deployer.domain.metrics.window import Window
from neuroweaver.v1 import deployer_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def seconds(count):
    return NOW + timedelta(seconds=count)


def sample(requests, **values):
    """A report of the stable revision."""
    return Sample(NOW, "", requests, **values)


def state_of(kind, states):
    return next(each for each in states if each.kind == kind)


def errors(share, requests=100):
    return Counts(errors=Sum(share * requests, requests))


class Course:
    """Error rates over time, by the default thresholds: at most 5 %, in 5 minutes, of at least 30 requests."""

    def __init__(self, policy=None):
        self.policy = filled(policy or pb.ModelThresholds())
        self.states = ()

    def at(self, second, counts):
        self.states = evaluated(self.states, self.policy, counts, seconds(second))
        self.states = tuple(stored(each) for each in self.states)
        return state_of(pb.THRESHOLD_KIND_ERROR_RATE, self.states)


def test_defaults_are_those_of_the_contract():
    found = filled(pb.ModelThresholds())
    assert (found.min_accuracy, found.max_latency_ms, found.min_throughput_rps) == (0.85, 2000, 10)
    assert (found.max_cost_per_request, found.max_error_rate, found.min_requests) == (0.01, 0.05, 30)
    assert found.window.seconds == 300
    # What was set to zero stays so.
    assert filled(pb.ModelThresholds(max_error_rate=0)).max_error_rate == 0


def test_a_threshold_breaks_beyond_its_limit_and_tells_since_when():
    course = Course()
    assert not course.at(0, errors(0.05)).is_breached
    assert course.at(10, errors(0.06)).breach_time == seconds(10)
    assert course.at(20, errors(0.07)).breach_time == seconds(10)


def test_too_few_requests_say_nothing():
    found = Course().at(0, errors(1.0, requests=29))
    assert (found.value, found.is_breached, found.requests) == (None, False, 29)
    assert Course().at(0, errors(1.0, requests=30)).is_breached


def test_a_broken_threshold_is_kept_again_after_a_quarter_of_the_window():
    course = Course()
    course.at(0, errors(0.2))
    assert course.at(10, errors(0.01)).is_breached
    # Broken again in between: the time counts from anew, and the break is the same one.
    assert course.at(80, errors(0.2)).breach_time == NOW
    assert course.at(90, errors(0.01)).is_breached
    assert course.at(164, errors(0.01)).is_breached
    kept = course.at(165, errors(0.01))
    assert (kept.is_breached, kept.breach_time, kept.value) == (False, None, 0.01)


def test_traffic_at_the_edge_of_enough_does_not_make_it_flap():
    course = Course()
    states = [course.at(10 * i, errors(0.2, 30 - i % 2)).is_breached for i in range(20)]
    assert all(states)
    # Without data for a quarter of the window it is neither kept nor broken.
    assert course.at(270, errors(0.2, 0)).value is None
    assert not course.at(270, errors(0.2, 0)).is_breached


def test_another_limit_is_judged_afresh():
    course = Course()
    course.at(0, errors(0.2))
    course.policy = pb.ModelThresholds(max_error_rate=0.5)
    assert not course.at(1, errors(0.2)).is_breached


@pytest.mark.parametrize(
    ("kind", "found", "value", "is_breached"),
    [
        (pb.THRESHOLD_KIND_ACCURACY, Counts(accuracy=Sum(80, 100)), 0.8, True),
        (pb.THRESHOLD_KIND_ACCURACY, Counts(accuracy=Sum(85, 100)), 0.85, False),
        (pb.THRESHOLD_KIND_COST, Counts(cost=Sum(2, 100)), 0.02, True),
        (pb.THRESHOLD_KIND_COST, Counts(cost=Sum(2, 100), reported_cost=Sum(0.5, 100)), 0.005, False),
        (pb.THRESHOLD_KIND_THROUGHPUT, Counts(loaded=Sum(100, 20)), 5, True),
        (pb.THRESHOLD_KIND_THROUGHPUT, Counts(loaded=Sum(100, 5)), 20, False),
        # Nobody waited: a low throughput is no fault.
        (pb.THRESHOLD_KIND_THROUGHPUT, Counts(errors=Sum(0, 100)), None, False),
    ],
)
def test_each_threshold_has_its_measure(kind, found, value, is_breached):
    state = state_of(kind, evaluated((), filled(pb.ModelThresholds()), found, NOW))
    assert (state.value, state.is_breached) == (value, is_breached)


def test_reported_samples_are_weighted_by_their_requests():
    found = total(
        [
            reported(sample(900, accuracy=0.9, latency_ms=100.0)),
            reported(sample(100, accuracy=0.4, latency_ms=4000.0)),
        ]
    )
    states = evaluated((), filled(pb.ModelThresholds()), found, NOW)
    assert state_of(pb.THRESHOLD_KIND_ACCURACY, states).value == pytest.approx(0.85)
    latency = state_of(pb.THRESHOLD_KIND_LATENCY, states)
    assert latency.value == pytest.approx(4000, rel=0.1)
    assert latency.is_breached


LIMITED = {
    pb.THRESHOLD_KIND_ERROR_RATE: {"error_rate": 0.5},
    pb.THRESHOLD_KIND_LATENCY: {"latency_ms": 9000.0},
    pb.THRESHOLD_KIND_COST: {"cost_per_request": 0.5},
    pb.THRESHOLD_KIND_THROUGHPUT: {"throughput_rps": 1.0},
}
MEASURED = Counts(
    errors=Sum(0, 1000),
    cost=Sum(1, 1000),
    latency_ms=Histogram.of_value(100.0, 1000),
    loaded=Sum(1000, 50),
)


@pytest.mark.parametrize("kind", LIMITED)
def test_a_report_of_a_part_takes_no_measurements_place(kind):
    policy = filled(pb.ModelThresholds())
    found = MEASURED + reported(sample(900, **LIMITED[kind]), is_loaded=True)
    assert state_of(kind, evaluated((), policy, found, NOW)) == state_of(
        kind, evaluated((), policy, MEASURED, NOW)
    )


@pytest.mark.parametrize("kind", LIMITED)
def test_a_report_of_the_whole_deployment_takes_a_measurements_place(kind):
    whole = sample(900, **LIMITED[kind], covers_deployment=True)
    found = MEASURED + reported(whole, is_loaded=True)
    assert state_of(kind, evaluated((), filled(pb.ModelThresholds()), found, NOW)).is_breached


@pytest.mark.parametrize("kind", LIMITED)
def test_where_nothing_was_measured_a_part_stands_for_the_whole_but_for_throughput(kind):
    found = reported(sample(900, **LIMITED[kind]), is_loaded=True)
    state = state_of(kind, evaluated((), filled(pb.ModelThresholds()), found, NOW))
    assert state.is_breached is (kind != pb.THRESHOLD_KIND_THROUGHPUT)


def test_constants_of_a_caller_neither_break_a_healthy_deployment_nor_hide_a_breach():
    """As RelayCore sends them with each request: 1 request a second, a tenth of a cent."""
    constants = total([reported(sample(1, throughput_rps=1.0, cost_per_request=0.001), is_loaded=True)] * 30)
    policy = filled(pb.ModelThresholds())
    healthy = evaluated((), policy, MEASURED + constants, NOW)
    assert not any(state.is_breached for state in healthy)
    dear = evaluated((), policy, replace(MEASURED, cost=Sum(20, 1000)) + constants, NOW)
    assert state_of(pb.THRESHOLD_KIND_COST, dear).is_breached


def test_a_reported_throughput_counts_under_load_only():
    slow = sample(100, throughput_rps=3.0, covers_deployment=True)
    idle = evaluated((), filled(pb.ModelThresholds()), reported(slow), NOW)
    loaded = evaluated((), filled(pb.ModelThresholds()), reported(slow, is_loaded=True), NOW)
    assert state_of(pb.THRESHOLD_KIND_THROUGHPUT, idle).value is None
    assert state_of(pb.THRESHOLD_KIND_THROUGHPUT, loaded).is_breached


def test_thresholds_in_words():
    states = evaluated((), filled(pb.ModelThresholds()), Counts(accuracy=Sum(70, 100)), NOW)
    assert described(state_of(pb.THRESHOLD_KIND_ACCURACY, states)) == "accuracy of 0.700, not at least 0.850"


SERVING = Serving(desired=2, ready=2, last_token_time=NOW, running=0, waiting=0)


@pytest.mark.parametrize(
    ("change", "at", "state", "part"),
    [
        ({}, 60, pb.HEALTH_STATE_HEALTHY, "last token is 60 s old"),
        # The port is open and the pods say ready, for 85 minutes.
        ({"running": 3.0}, 85 * 60, pb.HEALTH_STATE_UNHEALTHY, "No token for 85 min, though 3 requests"),
        ({}, 61, pb.HEALTH_STATE_UNKNOWN, "no request is waiting for one"),
        ({"last_token_time": None}, 0, pb.HEALTH_STATE_UNKNOWN, "No token yet"),
        ({"ready": 1, "reason": "no GPU is free"}, 0, pb.HEALTH_STATE_DEGRADED, "1 of 2 replicas are ready: no GPU is free"),
        ({"ready": 0}, 0, pb.HEALTH_STATE_UNHEALTHY, "None of 2 replicas is ready."),
        ({"ready": 0, "last_token_time": None}, 0, pb.HEALTH_STATE_UNKNOWN, "has served yet"),
        ({"ready": 0, "last_token_time": None, "failed": 1, "reason": "CUDA"}, 0, pb.HEALTH_STATE_UNHEALTHY, ": CUDA"),
        ({"desired": 0, "ready": 0}, 0, pb.HEALTH_STATE_UNKNOWN, "No replica is wanted"),
    ],
)  # fmt: skip
def test_a_model_is_healthy_only_while_tokens_are_proven(change, at, state, part):
    health = judged(None, replace(SERVING, **change), (), seconds(at))
    assert health.state == state
    assert part in health.reason


def test_a_broken_threshold_degrades_and_the_state_tells_since_when():
    states = evaluated((), filled(pb.ModelThresholds()), errors(0.2), NOW)
    health = judged(None, SERVING, states, NOW)
    assert health.state == pb.HEALTH_STATE_DEGRADED
    assert health.reason == "Serves with error rate of 20.00 %, not at most 5.00 %."
    later = judged(health, SERVING, states, seconds(5))
    assert later.since == NOW
    assert judged(later, SERVING, (), seconds(6)).since == seconds(6)
    assert stored(health) == health


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 50)), max_size=80),
    st.integers(0, 1200),
    st.randoms(use_true_random=False),
)
def test_a_window_holds_what_is_as_old_as_its_length_give_or_take_a_bucket(entries, now, rng):
    length, width = 300, 10
    window, rebuilt = Window(timedelta(seconds=length)), Window(timedelta(seconds=length))
    for at, requests in entries:
        window.add(seconds(at), errors(0.0, requests))
    shuffled = list(entries)
    rng.shuffle(shuffled)
    for at, requests in shuffled:
        rebuilt.add(seconds(at), errors(0.0, requests))
    newest = max((at for at, _ in entries), default=0)
    now = max(now, newest)
    found = window.total(seconds(now)).requests
    assert sum(n for at, n in entries if at > now - length + width) <= found
    assert found <= sum(n for at, n in entries if at > now - length - width)
    assert rebuilt.total(seconds(now)).requests == found


def test_a_window_keeps_no_more_than_its_buckets():
    window = Window(timedelta(seconds=30))
    for at in range(10_000):
        window.add(seconds(at), errors(0.0, 1))
    assert len(window._buckets) <= 60
    assert window.total(seconds(9_999)).requests == 30
