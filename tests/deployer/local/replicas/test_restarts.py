from __future__ import annotations

from neuroweaver.deployer.local.replicas.restarts import Failures, Policy
from neuroweaver.v1 import deployer_pb2 as pb


def test_waits_double_up_to_the_longest():
    policy, failures, delays = Policy(backoff_s=1, max_backoff_s=10), Failures(), []
    for time in range(6):
        failures = failures.failed(time, policy, None)
        delays.append(failures.delay_s(policy))
    assert delays == [1, 2, 4, 8, 10, 10]


def test_a_loop_is_that_many_restarts_within_ten_minutes():
    policy, failures = Policy(crash_loop_restarts=2), Failures()
    for time, is_loop in [(0, False), (10, False), (20, True)]:
        failures = failures.failed(time, policy, None)
        assert failures.is_crash_loop is is_loop


def test_failures_far_apart_are_no_loop():
    policy, failures = Policy(crash_loop_restarts=2), Failures()
    for time in (0, 700, 1400, 2100):
        failures = failures.failed(time, policy, time - 60)
        assert not failures.is_crash_loop


def test_a_loop_stays_one_while_long_waits_thin_it_out():
    policy, failures = Policy(crash_loop_restarts=2), Failures()
    for time in (0, 10, 20, 900, 1800):
        failures = failures.failed(time, policy, None)
    assert failures.is_crash_loop


def test_a_replica_that_ran_well_for_ten_minutes_begins_anew():
    policy, failures = Policy(crash_loop_restarts=2), Failures()
    for time in (0, 10, 20):
        failures = failures.failed(time, policy, None)
    failures = failures.failed(1000, policy, 400)
    assert failures == Failures((1000,))
    assert failures.delay_s(policy) == 1


def test_an_empty_spec_has_the_defaults():
    assert Policy.of(pb.DeploymentSpec()) == Policy()
