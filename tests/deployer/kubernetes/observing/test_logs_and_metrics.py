from __future__ import annotations

import math
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from deployer.kubernetes.conftest import QUICK
from deployer.kubernetes.desired import KEY, NAME, revision, spec, wanted
from deployer.kubernetes.fake import Fake, Fault
from neuroweaver.cluster import kinds
from neuroweaver.cluster.api import Api
from neuroweaver.deployer.kubernetes.backend import KubernetesBackend
from neuroweaver.deployer.kubernetes.observing import log_lines
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.deployer.model_servers import metrics
from neuroweaver.v1 import deployer_pb2 as pb

LOG = """2026-01-01T00:00:01.000000001Z {"level": "info", "message": "loading"}
2026-01-01T00:00:01.000000001Z WARNING: slow
2026-01-01T00:00:01.5Z plain
not of the log
2026-01-01T00:00:02Z 2026-01-01 ERROR broken
"""


def names(fake: Fake) -> list[str]:
    return sorted(each["metadata"]["name"] for each in fake.all(kinds.POD))


def test_lines_have_time_level_and_a_cursor():
    found = list(log_lines.lines(LOG, "p", 2))
    assert [each.level for each in found] == ["INFO", "WARNING", "", "ERROR"]
    assert [each.message for each in found][2] == "plain"
    assert found[0].time < found[2].time < found[3].time
    assert len({each.cursor for each in found}) == 4
    assert [each.cursor for each in found] == sorted(each.cursor for each in found)


@pytest.mark.parametrize("index", range(4))
def test_lines_go_on_after_a_cursor(index: int):
    found = list(log_lines.lines(LOG, "p", 2))
    assert list(log_lines.lines(LOG, "p", 2, found[index].cursor)) == found[index + 1 :]


def test_a_long_line_is_cut():
    (line,) = log_lines.lines(f"2026-01-01T00:00:01Z {'ä' * 20_000}", "p", 1)
    assert len(line.message.encode()) <= 16 * 1024
    assert line.message.endswith("…")


async def test_the_log_of_each_replica_after_its_cursor(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(revision(1, 2)))
    one, two = names(fake)
    fake.pod_logs[one] = LOG
    found = [line async for line in backend.logs(KEY, NAME, spec(), {})]
    assert {(each.replica_id, each.revision) for each in found} == {(one, 1)}
    assert len(found) == 4
    fake.pod_logs[two] = "2026-01-01T00:00:03Z hello\n"
    fake.pod_logs[one] += "2026-01-01T00:00:04Z more\n"
    more = [line async for line in backend.logs(KEY, NAME, spec(), {one: found[-1].cursor})]
    assert {each.message for each in more} == {"hello", "more"}


@pytest.mark.parametrize("status", [500, 504, -2], ids=["refused", "in vain", "silent"])
async def test_a_node_that_does_not_answer_silences_no_other(
    fake: Fake, settings: ClusterSettings, caplog: pytest.LogCaptureFixture, status: int
):
    api = Api(settings.access, replace(QUICK, attempt_s=0.3))
    backend = KubernetesBackend(settings, api)
    await backend.apply(wanted(revision(1, 4)))
    lost, *others = names(fake)
    for name in names(fake):
        pod = fake.get(kinds.POD, name)
        node = "lost" if name in {lost, others[-1]} else "well"
        fake._store(kinds.POD, pod | {"spec": pod["spec"] | {"nodeName": node}})
        fake.pod_logs[name] = "2026-01-01T00:00:03Z hello\n"
    of_the_lost = {f"/{name}/log" for name in (lost, others[-1])}
    fake.faults = [
        Fault(1, status, times=1000, matches=lambda _, path: path[-len(f"/{lost}/log") :] in of_the_lost)
    ]
    for _ in range(3):
        found = [line async for line in backend.logs(KEY, NAME, spec(), {})]
        assert {line.replica_id for line in found} == set(others[:-1])
    assert fake.faults[0].seen == 1
    assert [each.node for each in caplog.records if each.message == "logs cannot be read"] == ["lost"]
    fake.faults = []
    backend._pods.silent_nodes.end("lost")
    found = [line async for line in backend.logs(KEY, NAME, spec(), {})]
    assert {line.replica_id for line in found} == set(names(fake))
    await api.close()


def own_page(requests: int, seconds: float = 0.3) -> str:
    registry = CollectorRegistry()
    made = Counter("neuroweaver_serving_requests", "r", ["code"], registry=registry)
    made.labels("200").inc(requests)
    made.labels("500").inc(1)
    Counter("neuroweaver_serving_errors", "e", registry=registry).inc(1)
    Counter("neuroweaver_serving_tokens", "t", registry=registry).inc(10 * requests)
    Gauge("neuroweaver_serving_requests_running", "r", registry=registry).set(2)
    Gauge("neuroweaver_serving_requests_waiting", "w", registry=registry).set(1)
    duration = Histogram(
        "neuroweaver_serving_request_duration_seconds", "d", buckets=(0.1, 0.5), registry=registry
    )
    first = Histogram("neuroweaver_serving_first_token_seconds", "f", buckets=(0.1, 0.5), registry=registry)
    for _ in range(requests):
        duration.observe(seconds)
        first.observe(seconds / 10)
    Gauge("process_resident_memory_bytes", "m", registry=registry).set(1000)
    return generate_latest(registry).decode()


VLLM = """
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="a"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="a"} 4.0
# TYPE vllm:request_success_total counter
vllm:request_success_total{finished_reason="stop",model_name="a"} 7.0
vllm:request_success_total{finished_reason="length",model_name="a"} 2.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{model_name="a"} 100.0
# TYPE http_requests_total counter
http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"} 9.0
http_requests_total{handler="/v1/chat/completions",method="POST",status="5xx"} 1.0
# TYPE vllm:e2e_request_latency_seconds histogram
vllm:e2e_request_latency_seconds_bucket{le="0.3",model_name="a"} 5.0
vllm:e2e_request_latency_seconds_bucket{le="+Inf",model_name="a"} 9.0
"""


def test_a_page_of_our_server():
    read = metrics.page(own_page(4))
    assert (read.requests, read.errors, read.tokens, read.running, read.waiting) == (5, 1, 40, 2, 1)
    assert read.latency_ms == {100.0: 0, 500.0: 4, math.inf: 4}
    assert read.first_token_ms == {100.0: 4, 500.0: 4, math.inf: 4}
    assert read.memory_bytes == 1000


def test_a_page_of_vllm():
    read = metrics.page(VLLM)
    assert (read.requests, read.errors, read.tokens, read.running, read.waiting) == (10, 1, 100, 3, 4)
    assert read.latency_ms == {300.0: 5, math.inf: 9}


@pytest.mark.parametrize(
    "text", ["", "<html>", "some_metric 1\n", "neuroweaver_serving_requests_running {{{"]
)
def test_what_is_no_page_of_a_model_server_is_none(text: str):
    with pytest.raises(metrics.NoMetrics):
        metrics.page(text)


async def test_the_figures_of_a_revision_are_summed_and_the_silent_named(
    backend: KubernetesBackend, fake: Fake
):
    await backend.apply(wanted(revision(1, 3, 75), revision(2, 1, 25)))
    stable = [name for name in names(fake) if "-r1-" in name]
    (candidate,) = (name for name in names(fake) if "-r2-" in name)
    fake.pages[f"{stable[0]}/metrics"] = own_page(4)
    fake.pages[f"{stable[1]}/metrics"] = own_page(6)
    fake.pages[f"{candidate}/metrics"] = own_page(1)
    first, second = await backend.measure(KEY, NAME, spec())
    assert (first.revision, first.requests, first.errors, first.running) == (1, 12, 2, 4)
    assert first.latency_ms == {100.0: 0, 500.0: 10, math.inf: 10}
    assert first.missing_replicas == (stable[2],)
    assert first.memory_bytes == 2000
    assert (second.revision, second.requests, second.missing_replicas) == (2, 2, ())


async def test_use_of_cpu_comes_from_the_metrics_server(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(revision(1, 1)))
    (name,) = names(fake)
    fake.known[kinds.POD_METRICS.api_version, kinds.POD_METRICS.plural] = kinds.POD_METRICS
    labels = fake.get(kinds.POD, name)["metadata"]["labels"]
    usage = {"name": "server", "usage": {"cpu": "250000000n", "memory": "128Mi"}}
    fake.put(kinds.POD_METRICS, {"metadata": {"name": name, "labels": labels}, "containers": [usage]})
    (seen,) = await backend.measure(KEY, NAME, spec())
    assert (seen.cpu_cores, seen.memory_bytes) == (0.25, 128 * 2**20)
    assert seen.missing_replicas == (name,)
    assert seen.running is None


async def test_a_metrics_server_that_is_away_is_not_asked_each_time(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted(revision(1, 1)))
    (name,) = names(fake)
    fake.pages[f"{name}/metrics"] = own_page(4)
    fake.faults = [Fault(1, 503, times=1000, matches=lambda _, path: "metrics.k8s.io" in path)]
    for _ in range(3):
        (seen,) = await backend.measure(KEY, NAME, spec())
        assert (seen.requests, seen.cpu_cores) == (5, None)
    assert fake.faults[0].seen == 1


async def test_inside_a_cluster_a_pod_without_an_address_is_not_asked(
    backend: KubernetesBackend, fake: Fake, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Api, "is_inside", True)
    await backend.apply(wanted())
    assert {each.phase for each in (await backend.observe(KEY, NAME, spec())).replicas} == {
        pb.REPLICA_PHASE_READY
    }
    (measured,) = await backend.measure(KEY, NAME, spec())
    assert sorted(measured.missing_replicas) == sorted(names(fake))
