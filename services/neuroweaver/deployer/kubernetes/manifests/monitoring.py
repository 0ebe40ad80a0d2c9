"""What Prometheus is told: whom to ask (ServiceMonitor), what to compute and when to wake somebody
(PrometheusRule).

Two sources of figures: NeuroWeaver's own model server and vLLM, whose metrics have other names.
"""

from __future__ import annotations

import json
from typing import Final

from neuroweaver.cluster.kinds import PROMETHEUS_RULE, SERVICE_MONITOR, Object
from neuroweaver.deployer.kubernetes.manifests.pods import uses_vllm
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.kubernetes.naming.containers import PORT_NAME, SERVER
from neuroweaver.deployer.kubernetes.observing.measuring import HTTP_REQUESTS, OWN, VLLM, Names
from neuroweaver.v1 import deployer_pb2 as pb

CONCURRENCY: Final = "neuroweaver_serving_concurrency"
"""Recorded per pod: requests at work and waiting. What autoscaling by concurrency looks at."""

DEPLOYMENT_LABEL: Final = "neuroweaver_dev_deployment"
"""As Prometheus writes `neuroweaver.dev/deployment`."""


def service_monitor(name: str, metadata: Object) -> Object:
    """Each revision's pods, labelled by deployment and revision, and those of the router, if there is one."""
    return {
        "apiVersion": SERVICE_MONITOR.api_version,
        "kind": SERVICE_MONITOR.name,
        "metadata": metadata,
        "spec": {
            "selector": {
                "matchLabels": {identity.DEPLOYMENT: name},
                # Not the front, which would count the same pods once more.
                "matchExpressions": [
                    {"key": identity.ROLE, "operator": "In", "values": ["revision", "router"]}
                ],
            },
            "targetLabels": [identity.DEPLOYMENT, identity.REVISION],
            "endpoints": [{"port": PORT_NAME, "path": "/metrics", "interval": "15s"}],
        },
    }


def prometheus_rule(
    name: str, namespace: str, spec: pb.DeploymentSpec, model_id: str, metadata: Object
) -> Object:
    names = VLLM if uses_vllm(spec) else OWN
    where = f"{DEPLOYMENT_LABEL}={_quoted(name)},namespace={_quoted(namespace)}"
    return {
        "apiVersion": PROMETHEUS_RULE.api_version,
        "kind": PROMETHEUS_RULE.name,
        "metadata": metadata,
        "spec": {
            "groups": [
                {
                    "name": f"{name}.recording",
                    "interval": "15s",
                    "rules": [
                        {
                            "record": CONCURRENCY,
                            "expr": f"sum by (namespace, pod, {DEPLOYMENT_LABEL}) "
                            f"({names.running}{{{where}}} + {names.waiting}{{{where}}})",
                        }
                    ],
                },
                {"name": f"{name}.alerts", "rules": _alerts(name, namespace, spec, model_id, names, where)},
            ]
        },
    }


def _alerts(
    name: str, namespace: str, spec: pb.DeploymentSpec, model_id: str, names: Names, where: str
) -> list[Object]:
    thresholds = spec.thresholds
    window = f"{max(60, round(thresholds.window.ToTimedelta().total_seconds()) or 300)}s"
    answered = names.requests if names.errors else HTTP_REQUESTS
    failed = f"{names.errors}{{{where}}}" if names.errors else f'{HTTP_REQUESTS}{{{where},status="5xx"}}'
    requests = f"sum(rate({answered}{{{where}}}[{window}]))"
    errors = f"sum(rate({failed}[{window}]))"
    buckets = f"sum by (le) (rate({names.latency}_bucket{{{where}}}[{window}]))"
    pods = f"namespace={_quoted(namespace)},pod=~{_quoted(f'{name}-r[0-9]+-.*')},container={_quoted(SERVER)}"
    own = f"deployment={_quoted(name)}"
    return [
        _alert(
            "ModelHighLatency",
            f"1000 * histogram_quantile(0.95, {buckets}) > {_number(thresholds.max_latency_ms or 2000)}",
            "2m",
            "warning",
            name,
            "The 95th percentile of latency is {{ $value | humanize }} ms.",
        ),
        _alert(
            "ModelErrorRate",
            f"{errors} / {requests} > {_number(thresholds.max_error_rate or 0.05)}",
            "2m",
            "critical",
            name,
            "{{ $value | humanizePercentage }} of the requests fail.",
        ),
        _alert(
            "ModelLowAccuracy",
            f"neuroweaver_deployment_accuracy{{{own}}} < {_number(thresholds.min_accuracy or 0.85)}",
            "5m",
            "warning",
            name,
            "The accuracy reported is {{ $value | humanize }}.",
        ),
        _alert(
            "ModelResourceExhaustion",
            f"max(container_memory_working_set_bytes{{{pods}}} / on (namespace, pod, container) "
            f'kube_pod_container_resource_limits{{resource="memory",{pods}}}) > 0.95',
            "5m",
            "warning",
            name,
            "A replica uses {{ $value | humanizePercentage }} of the memory that it may use.",
        ),
        _alert(
            "ModelExperimentSignificant",
            f"max by (experiment) (neuroweaver_experiment_significant{{model_id={_quoted(model_id)}}}) == 1",
            "0s",
            "info",
            name,
            "Experiment {{ $labels.experiment }} has reached significance.",
        ),
    ]


def _alert(alert: str, expression: str, wait: str, severity: str, name: str, summary: str) -> Object:
    return {
        "alert": alert,
        "expr": expression,
        "for": wait,
        "labels": {"severity": severity, "deployment": name},
        "annotations": {"summary": summary},
    }


def _quoted(text: str) -> str:
    """A string of PromQL, whose escapes are those of JSON as far as names reach."""
    return json.dumps(text, ensure_ascii=False)


def _number(value: float) -> str:
    return repr(float(value))
