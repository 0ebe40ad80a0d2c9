"""The defaults of a spec that depend on nothing else, by the message whose fields they are."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from neuroweaver.v1 import deployer_pb2 as pb

M = TypeVar("M", bound=Message)

NAME: Final = "default"

_DEFAULTS: Final = {
    type(message): message
    for message in (
        pb.DeploymentSpec(startup_timeout=Duration(seconds=600), drain_timeout=Duration(seconds=30)),
        pb.Autoscaling(min_replicas=1, scale_down_delay=Duration(seconds=300)),
        pb.ReplicaResources(cpu_request="1", gpu_resource="nvidia.com/gpu"),
        pb.EngineOptions(adapter_mode=pb.ADAPTER_MODE_MERGED, max_queue_size=256, tensor_parallel_size=1),
        pb.RolloutPolicy(
            max_surge=1,
            max_unavailable=0,
            session_affinity=pb.SESSION_AFFINITY_CONVERSATION,
            progress_deadline=Duration(seconds=600),
        ),
        pb.CanaryStep(bake_time=Duration(seconds=300)),
        pb.CanaryAnalysis(interval=Duration(seconds=30), min_requests=100, confidence=0.95),
        pb.ModelThresholds(
            min_accuracy=0.85,
            max_latency_ms=2000.0,
            min_throughput_rps=10.0,
            max_cost_per_request=0.01,
            max_error_rate=0.05,
            min_requests=30,
            window=Duration(seconds=300),
        ),
        pb.RecoveryPolicy(
            restart_backoff=Duration(seconds=1),
            crash_loop_restarts=5,
            auto_switch=True,
            switch_after=Duration(seconds=30),
            auto_switch_back=False,
        ),
        pb.BackupModel(name=NAME),
        pb.KubernetesOptions(monitoring=True),
        pb.Toleration(operator=pb.TOLERATION_OPERATOR_EXISTS),
    )
}


def filled(message: M) -> M:
    """A copy in which every field that was not given has its default, also in messages within."""
    copy = deepcopy(message)
    fill(copy)
    return copy


def fill(message: Any) -> None:
    """As `filled`, in place. A field with presence that was set to zero was given."""
    given = {field.name for field, _ in message.ListFields()}
    defaults = _DEFAULTS.get(type(message))
    for field, value in defaults.ListFields() if defaults is not None else ():
        if field.name not in given and isinstance(value, Message):
            getattr(message, field.name).CopyFrom(value)
        elif field.name not in given:
            setattr(message, field.name, value)
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for part in value if field.is_repeated else [value]:
            fill(part)
