"""Wishes as the reconcile loop would have them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from neuroweaver.artifacts.file import File
from neuroweaver.deployer.domain.backend import Bundle, DesiredRevision, DesiredState, Key, Redirect
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.v1 import deployer_pb2 as pb

KEY = Key("default", "support-bot", "default")
NAME = "nw-support-bot-default-abcdefghij"
SETTINGS = ClusterSettings(base_claim="base-models")


def to(url: str, model_id: str = KEY.model_id) -> Redirect:
    return Redirect(url, model_id)


def routed(**fields) -> pb.DeploymentSpec:
    """With a router in front."""
    made = spec(**fields)
    made.kubernetes.traffic_routing = pb.TRAFFIC_ROUTING_ROUTER
    return made


def seconds(count: float) -> Duration:
    made = Duration()
    made.FromTimedelta(timedelta(seconds=count))
    return made


def spec(**fields) -> pb.DeploymentSpec:
    """As the deployer completes it."""
    made = pb.DeploymentSpec(
        version="1.0.0",
        backend=pb.DEPLOYMENT_BACKEND_KUBERNETES,
        resources=pb.ReplicaResources(
            cpu_request="10m", memory_request="16Mi", memory_limit="16Mi", gpu_resource="nvidia.com/gpu"
        ),
        engine=pb.EngineOptions(
            adapter_mode=pb.ADAPTER_MODE_MERGED, max_queue_size=256, tensor_parallel_size=1
        ),
        rollout=pb.RolloutPolicy(
            max_surge=1,
            max_unavailable=0,
            session_affinity=pb.SESSION_AFFINITY_CONVERSATION,
            progress_deadline=seconds(600),
        ),
        thresholds=pb.ModelThresholds(
            min_accuracy=0.85, max_latency_ms=2000, max_error_rate=0.05, window=seconds(300), min_requests=30
        ),
        recovery=pb.RecoveryPolicy(crash_loop_restarts=5),
        startup_timeout=seconds(600),
        drain_timeout=seconds(30),
        kubernetes=pb.KubernetesOptions(
            namespace="default", monitoring=True, traffic_routing=pb.TRAFFIC_ROUTING_SERVICE
        ),
    )
    for name, value in fields.items():
        if hasattr(value, "DESCRIPTOR"):
            getattr(made, name).MergeFrom(value)
        elif isinstance(value, dict):
            getattr(made, name).update(value)
        else:
            setattr(made, name, value)
    return made


def bundle(version: str = "1.0.0", base: str = "HuggingFaceTB/SmolLM2-135M-Instruct") -> Bundle:
    files = (File("adapter_model.safetensors", "a" * 64, 4096), File("adapter_config.json", "b" * 64, 512))
    return Bundle(version, files, "c" * 64, base, "d" * 64 if base else "")


def revision(number: int = 1, replicas: int = 2, weight: int = 100, **fields) -> DesiredRevision:
    return DesiredRevision(number, bundle(f"{number}.0.0"), replicas, weight, **fields)


def wanted(*revisions: DesiredRevision, **fields) -> DesiredState:
    made = DesiredState(
        KEY, NAME, fields.pop("spec", None) or spec(), revisions or (revision(),), generation=1
    )
    return replace(made, **fields)
