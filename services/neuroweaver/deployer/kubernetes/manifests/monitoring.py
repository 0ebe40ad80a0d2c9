"""For Prometheus: what to scrape (ServiceMonitor), what to compute, and when to alert (PrometheusRule).

Metrics come from NeuroWeaver's own model server or from vLLM, which names them otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from neuroweaver.cluster.kinds import PROMETHEUS_RULE, SERVICE_MONITOR, Object
from neuroweaver.deployer.kubernetes.manifests.pods import uses_vllm
from neuroweaver.deployer.kubernetes.manifests.scope import Scope
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.kubernetes.naming.containers import PORT_NAME, SERVER
from neuroweaver.deployer.model_servers.metrics import HTTP_REQUESTS, OWN, VLLM, Names

CONCURRENCY: Final = "neuroweaver_serving_concurrency"
"""Recorded per pod: requests at work and waiting. What autoscaling by concurrency looks at."""

DEPLOYMENT_LABEL: Final = "neuroweaver_dev_deployment"
"""As Prometheus writes `neuroweaver.dev/deployment`."""


def service_monitor(scope: Scope) -> Object:
    """Each revision's pods, labelled by deployment and revision, and those of the router, if there is one."""
    # Not the front, which would count the same pods once more.
    is_behind = {"key": identity.ROLE, "operator": "In", "values": ["revision", "router"]}
    spec = {
        "selector": {"matchLabels": {identity.DEPLOYMENT: scope.name}, "matchExpressions": [is_behind]},
        "targetLabels": [identity.DEPLOYMENT, identity.REVISION],
        "endpoints": [{"port": PORT_NAME, "path": "/metrics", "interval": "15s"}],
    }
    return scope.object(SERVICE_MONITOR, spec=spec)


def prometheus_rule(scope: Scope) -> Object:
    name = scope.name
    names = VLLM if uses_vllm(scope.spec) else OWN
    where = f"{DEPLOYMENT_LABEL}={_quoted(name)},namespace={_quoted(scope.namespace)}"
    at_work = f"{names.running}{{{where}}} + {names.waiting}{{{where}}}"
    recorded = {"record": CONCURRENCY, "expr": f"sum by (namespace, pod, {DEPLOYMENT_LABEL}) ({at_work})"}
    groups = [
        {"name": f"{name}.recording", "interval": "15s", "rules": [recorded]},
        {
            "name": f"{name}.alerts",
            "rules": [
                {
                    "alert": alert,
                    "expr": expression,
                    "for": wait,
                    "labels": {"severity": severity, "deployment": name},
                    "annotations": {"summary": summary},
                }
                for alert, expression, wait, severity, summary in _alerts(scope, names, where)
            ],
        },
    ]
    return scope.object(PROMETHEUS_RULE, spec={"groups": groups})


def _alerts(scope: Scope, names: Names, where: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Name, expression, how long it must hold, severity, summary."""
    thresholds = scope.spec.thresholds
    window = f"{max(60, round(thresholds.window.ToTimedelta().total_seconds()) or 300)}s"
    answered = names.requests if names.errors else HTTP_REQUESTS
    failed = f"{names.errors}{{{where}}}" if names.errors else f'{HTTP_REQUESTS}{{{where},status="5xx"}}'
    requests = f"sum(rate({answered}{{{where}}}[{window}]))"
    errors = f"sum(rate({failed}[{window}]))"
    buckets = f"sum by (le) (rate({names.latency}_bucket{{{where}}}[{window}]))"
    pods = _quoted(f"{scope.name}-r[0-9]+-.*")
    container = f"namespace={_quoted(scope.namespace)},pod=~{pods},container={_quoted(SERVER)}"
    used = f"container_memory_working_set_bytes{{{container}}}"
    limit = f'kube_pod_container_resource_limits{{resource="memory",{container}}}'
    own = f"deployment={_quoted(scope.name)}"
    yield (
        "ModelHighLatency",
        f"1000 * histogram_quantile(0.95, {buckets}) > {float(thresholds.max_latency_ms or 2000)}",
        "2m",
        "warning",
        "The 95th percentile of latency is {{ $value | humanize }} ms.",
    )
    yield (
        "ModelErrorRate",
        f"{errors} / {requests} > {float(thresholds.max_error_rate or 0.05)}",
        "2m",
        "critical",
        "{{ $value | humanizePercentage }} of the requests fail.",
    )
    yield (
        "ModelLowAccuracy",
        f"neuroweaver_deployment_accuracy{{{own}}} < {float(thresholds.min_accuracy or 0.85)}",
        "5m",
        "warning",
        "The accuracy reported is {{ $value | humanize }}.",
    )
    yield (
        "ModelResourceExhaustion",
        f"max({used} / on (namespace, pod, container) {limit}) > 0.95",
        "5m",
        "warning",
        "A replica uses {{ $value | humanizePercentage }} of the memory that it may use.",
    )
    model = _quoted(scope.wanted.key.model_id)
    yield (
        "ModelExperimentSignificant",
        f"max by (experiment) (neuroweaver_experiment_significant{{model_id={model}}}) == 1",
        "0s",
        "info",
        "Experiment {{ $labels.experiment }} has reached significance.",
    )


def _quoted(text: str) -> str:
    """A string of PromQL, whose escapes are those of JSON as far as names reach."""
    return json.dumps(text, ensure_ascii=False)
