from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from deployer.kubernetes.desired import KEY, NAME, revision, spec, wanted
from deployer.kubernetes.fake import Fake
from neuroweaver.cluster import kinds
from neuroweaver.deployer.domain.backend import Replica
from neuroweaver.deployer.kubernetes.backend import KubernetesBackend
from neuroweaver.deployer.kubernetes.observing import observation
from neuroweaver.deployer.model_servers.health import Health
from neuroweaver.v1 import deployer_pb2 as pb

BEGIN = "2026-01-01T00:00:00Z"
NOW = datetime(2026, 1, 1, 0, 0, 20, tzinfo=UTC)
SCHEDULED = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:02Z"}


def pod(status: dict, node: str = "node", **metadata) -> dict:
    labels = {"neuroweaver.dev/revision": "3"}
    spec = {"nodeName": node} if node else {}
    return {
        "metadata": {"name": "p", "uid": "u", "creationTimestamp": BEGIN, "labels": labels} | metadata,
        "spec": spec,
        "status": status,
    }


def server(state: dict, **fields) -> dict:
    return {"containerStatuses": [{"name": "server", "restartCount": 0, "state": state} | fields]}


def waiting(reason: str, message: str = "") -> dict:
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int, message: str = "", reason: str = "Error") -> dict:
    return {
        "terminated": {
            "exitCode": code,
            "message": message,
            "reason": reason,
            "finishedAt": "2026-01-01T00:01:00Z",
        }
    }


RUNNING = {"running": {"startedAt": "2026-01-01T00:00:10Z"}}


@pytest.mark.parametrize(
    ("found", "phase", "message"),
    [
        (pod({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]}, ""), "SCHEDULING", "0/3 nodes"),
        (pod({}, ""), "SCHEDULING", ""),
        (pod({"conditions": [SCHEDULED]} | server(waiting("PodInitializing"))), "PULLING", ""),
        (pod({"conditions": [SCHEDULED]} | server(waiting("ImagePullBackOff", "no such image"))), "FAILED", "ImagePullBackOff: no such image"),
        (pod({"conditions": [SCHEDULED]} | server(RUNNING, started=False)), "LOADING", ""),
        (pod({"conditions": [SCHEDULED]} | server(RUNNING, started=True)), "WARMING", ""),
        (pod({"conditions": [SCHEDULED, {"type": "Ready", "status": "True"}]} | server(RUNNING)), "READY", ""),
        (pod({"conditions": [{"type": "Ready", "status": "True"}]}, ""), "READY", ""),
        (pod({"conditions": [{"type": "Ready", "status": "True"}]}, deletionTimestamp=BEGIN), "DRAINING", ""),
        (pod({"phase": "Failed", "reason": "Evicted", "message": "out of disk"}), "GONE", "Evicted out of disk"),
        (pod({"phase": "Failed"} | server(ended(137)), deletionTimestamp=BEGIN), "GONE", "server ended with exit code 137"),
        (pod({"conditions": [{"type": "Ready", "status": "True"}]}, deletionTimestamp="2025-12-31T23:59:00Z"), "GONE", ""),
        (pod({"phase": "Succeeded"}), "GONE", ""),
        (
            pod({"conditions": [SCHEDULED]} | server(waiting("CrashLoopBackOff"), restartCount=7, lastState=ended(4, "cannot load"))),
            "CRASH_LOOP",
            "server ended with exit code 4: cannot load",
        ),
        (
            pod({"conditions": [SCHEDULED]} | server(waiting("CrashLoopBackOff"), restartCount=2, lastState=ended(137, "", "OOMKilled"))),
            "FAILED",
            "server ended with exit code 137 (OOMKilled)",
        ),
        (pod({"conditions": [SCHEDULED]} | server(ended(2, "bad config"))), "FAILED", "server ended with exit code 2: bad config"),
        (
            pod({"conditions": [SCHEDULED], "initContainerStatuses": [{"name": "fetch", "restartCount": 5, "state": waiting("CrashLoopBackOff"), "lastState": ended(3, "a: wrong digest")}]} | server(waiting("PodInitializing"))),
            "CRASH_LOOP",
            "fetch ended with exit code 3: a: wrong digest",
        ),
    ],
)  # fmt: skip
def test_a_pod_is_in_one_phase_with_its_reason(found: dict, phase: str, message: str):
    seen = observation.replica(found, crash_loop_restarts=5, now=NOW)
    assert pb.ReplicaPhase.Name(seen.phase) == f"REPLICA_PHASE_{phase}"
    assert seen.message == message
    assert seen.revision == 3


def test_how_long_each_phase_of_a_start_took():
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:25Z"}
    seen = observation.replica(pod({"conditions": [SCHEDULED, ready]} | server(RUNNING)), 5)
    assert seen.phases == (
        (pb.REPLICA_PHASE_SCHEDULING, timedelta(seconds=2)),
        (pb.REPLICA_PHASE_PULLING, timedelta(seconds=8)),
        (pb.REPLICA_PHASE_LOADING, timedelta(seconds=15)),
    )
    assert seen.ready_time == datetime(2026, 1, 1, 0, 0, 25, tzinfo=UTC)


def test_a_ready_one_has_a_time_though_its_condition_has_none():
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    started = observation.replica(pod(ready | server(RUNNING)), 5)
    assert started.ready_time == datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC)
    assert observation.replica(pod(ready), 5).ready_time == datetime(2026, 1, 1, tzinfo=UTC)


def test_a_failed_one_says_when_it_is_started_again():
    found = pod(
        {"conditions": [SCHEDULED]} | server(waiting("CrashLoopBackOff"), restartCount=3, lastState=ended(4))
    )
    seen = observation.replica(found, 5)
    assert (seen.restarts, seen.last_exit) == (3, 4)
    assert seen.restart_at == datetime(2026, 1, 1, 0, 1, 40, tzinfo=UTC)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "INSUFFICIENT_GPU"),
        ("0/3 nodes are available: 3 Insufficient cpu.", "INSUFFICIENT_CPU"),
        ("0/3 nodes are available: 1 Insufficient memory, 2 node(s) had a taint.", "INSUFFICIENT_MEMORY"),
        ("0/3 nodes are available: 3 node(s) had untolerated taint {a: b}.", "UNSCHEDULABLE"),
    ],
)
def test_why_a_pod_finds_no_node(message: str, reason: str):
    found = pod({"conditions": [{"type": "PodScheduled", "status": "False", "message": message}]}, "")
    assert observation.reasons([found], [], []) == [(reason, message)]


def test_a_lack_of_memory_is_a_reason_until_the_pod_is_back():
    killed = server(RUNNING, restartCount=1, lastState=ended(137, reason="OOMKilled"))
    placed = [SCHEDULED, {"type": "Ready", "status": "False"}]
    found = pod({"conditions": placed} | killed)
    assert observation.reasons([found], [], []) == [
        ("OOM_KILLED", "server ended with exit code 137 (OOMKilled)")
    ]
    fetching = {
        "initContainerStatuses": [{"name": "fetch", "state": ended(137, reason="OOMKilled")}],
        "conditions": placed,
    }
    assert observation.reasons([pod(fetching)], [], [])[0][0] == "OOM_KILLED"
    back = pod({"conditions": [SCHEDULED, {"type": "Ready", "status": "True"}]} | killed)
    assert not observation.reasons([back], [], [])


def test_a_quota_and_a_blind_autoscaler_are_reasons():
    def saying(**condition: str) -> dict:
        return {"status": {"conditions": [condition]}}

    full = saying(type="ReplicaFailure", status="True", message="exceeded quota: gpus")
    why = {"reason": "FailedGetResourceMetric", "message": "no metrics"}
    blind = saying(type="ScalingActive", status="False", **why)
    assert observation.reasons([], [full], [blind]) == [
        ("QUOTA_EXCEEDED", "exceeded quota: gpus"),
        ("AUTOSCALING_BLIND", "no metrics"),
    ]


def test_the_figure_highest_above_its_target_is_the_cause():
    def metric(name: str, key: str, value: int) -> dict:
        return {"type": "Resource", "resource": {"name": name, key: {"averageUtilization": value}}}

    scaler = {
        "spec": {"metrics": [metric("cpu", "target", 80), metric("memory", "target", 50)]},
        "status": {"currentMetrics": [metric("cpu", "current", 90), metric("memory", "current", 80)]},
    }
    assert observation.cause_of_scaling(scaler) == "MEMORY"


@pytest.mark.parametrize(
    "told", [None, [], {}, {"last_token_time": "soon", "loaded_versions": 3, "phases": []}]
)
def test_a_health_page_that_is_not_as_agreed_says_nothing(told: object):
    assert Health.of(told) == Health()


def test_the_servers_own_word_is_finer():
    known = Replica("p", 1, pb.REPLICA_PHASE_LOADING, phases=((pb.REPLICA_PHASE_SCHEDULING, timedelta(1)),))
    told = {
        "phase": "warming",
        "phases": {"loading": 4.5, "warming": 1},
        "last_token_time": 1767225600,
        "loaded_versions": ["1.0.0"],
    }
    seen = observation.with_health(known, Health.of(told))
    assert seen.phase == pb.REPLICA_PHASE_WARMING
    assert seen.phases[1:] == (
        (pb.REPLICA_PHASE_LOADING, timedelta(seconds=4.5)),
        (pb.REPLICA_PHASE_WARMING, timedelta(seconds=1)),
    )
    assert seen.last_token_time == datetime(2026, 1, 1, tzinfo=UTC)
    assert seen.loaded_versions == ("1.0.0",)
    ready = Replica("p", 1, pb.REPLICA_PHASE_READY)
    assert observation.with_health(ready, Health.of({"phase": "failed"})).phase == pb.REPLICA_PHASE_READY


# Through the backend, over HTTP.


def names(fake: Fake) -> list[str]:
    return sorted(each["metadata"]["name"] for each in fake.all(kinds.POD))


async def test_the_reason_of_a_crash_loop_comes_from_the_log(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(revision(1, 1)))
    (name,) = names(fake)
    status = {"phase": "Running", "conditions": [SCHEDULED]} | server(
        waiting("CrashLoopBackOff"), restartCount=6, lastState=ended(4)
    )
    fake.status(name, status)
    fake.pod_logs[name] = "2026-01-01T00:00:59.5Z cannot load: no memory\n"
    (seen,) = (await backend.observe(KEY, NAME, spec())).replicas
    assert seen.phase == pb.REPLICA_PHASE_CRASH_LOOP
    assert seen.message == "server ended with exit code 4: cannot load: no memory"


async def test_an_evicted_pod_does_not_hold_up_a_recreate(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(revision(1, 1)))
    (name,) = names(fake)
    fake.is_draining_slowly = True
    desired = wanted(revision(2, 1), replacement=pb.REPLACEMENT_MODE_RECREATE, generation=2)
    await backend.apply(desired)
    assert {each.revision for each in (await backend.observe(KEY, NAME, spec())).replicas} == {1}
    fake.status(name, {"phase": "Failed", "reason": "Evicted"})
    await backend.apply(desired)
    seen = {each.revision: each.phase for each in (await backend.observe(KEY, NAME, spec())).replicas}
    assert seen == {1: pb.REPLICA_PHASE_GONE, 2: pb.REPLICA_PHASE_READY}


async def test_an_adapter_missing_on_one_replica_shows(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(revision(1, 2)))
    one, two = names(fake)
    fake.pages[f"{one}/health/live"] = (
        '{"phase": "ready", "loaded_versions": ["1.0.0"], "last_token_time": 1767225600}'
    )
    fake.pages[f"{two}/health/live"] = '{"phase": "ready", "loaded_versions": []}'
    seen = {each.replica_id: each for each in (await backend.observe(KEY, NAME, spec())).replicas}
    assert (seen[one].loaded_versions, seen[two].loaded_versions) == (("1.0.0",), ())
    assert seen[one].last_token_time == datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_pod_that_does_not_say_is_not_asked_each_time(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(revision(1, 1)))
    for _ in range(3):
        (seen,) = (await backend.observe(KEY, NAME, spec())).replicas
        assert seen.phase == pb.REPLICA_PHASE_READY
    assert sum("/proxy/health" in path for _, path in fake.calls) == 1
