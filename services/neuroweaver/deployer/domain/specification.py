"""What a deployment is asked to be: its defaults filled in, and the checks that its messages cannot say."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, Final

from neuroweaver.cluster import quantities
from neuroweaver.deployer.domain.backend import Bundle, Key
from neuroweaver.deployer.domain.defaults import NAME, fill
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.v1 import deployer_pb2 as pb

DEFAULT_ALIAS: Final = "production"

_GIBIBYTE: Final = 2**30
_ENGINE_BYTES: Final = _GIBIBYTE
"""What the engine takes before the first weight: interpreter, libraries, buffers."""
_IMAGE_BYTES: Final = 2 * _GIBIBYTE
_UNKNOWN_BASE_BYTES: Final = 4 * _GIBIBYTE
_BYTES_PER_WEIGHT: Final = 2

_MODEL_ID: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_NAMES: Final = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", re.ASCII)
_WEIGHTS_IN_NAME: Final = re.compile(r"(?<![0-9.])([0-9]+(?:\.[0-9]+)?)([mb])(?![a-z0-9])", re.ASCII)


@dataclass(frozen=True)
class Defaults:
    """What the server fills in by itself. image: of the model server in a cluster."""

    backend: pb.DeploymentBackend.ValueType = pb.DEPLOYMENT_BACKEND_LOCAL
    namespace: str = "default"
    image: str = ""


def sourced(spec: pb.DeploymentSpec) -> pb.DeploymentSpec:
    """A copy with its source: the alias `production` where none is named."""

    def name(spec: pb.DeploymentSpec) -> None:
        if spec.WhichOneof("source") is None:
            spec.alias = DEFAULT_ALIAS

    return changed(spec, name)


def completed(asked: pb.DeploymentSpec, key: Key, bundle: Bundle, defaults: Defaults) -> pb.DeploymentSpec:
    """With every default written out. Raises InvalidArgument naming the field that is wrong."""
    spec = sourced(asked)
    spec.backend = spec.backend or defaults.backend
    _check(spec, key)
    _fill(spec, bundle, defaults)
    _check_completed(spec)
    return spec


def key_of(project: str, model_id: str, name: str) -> Key:
    """Raises InvalidArgument for what can be no deployment."""
    if not _MODEL_ID.fullmatch(model_id):
        raise InvalidArgument(
            "model_id",
            "must hold 1 to 63 lower-case letters, digits and dashes, with a letter or digit at both ends",
        )
    if name and not _NAMES.fullmatch(name):
        raise InvalidArgument(
            "name", "must begin with a letter and hold at most 32 lower-case letters, digits and dashes"
        )
    return Key(project, model_id, name or NAME)


def backup_of(spec: pb.DeploymentSpec, project: str) -> Key | None:
    if not spec.recovery.HasField("backup"):
        return None
    backup = spec.recovery.backup
    return Key(project, backup.model_id, backup.name or NAME)


def has_router(spec: pb.DeploymentSpec, key: Key) -> bool:
    """Whether a router stands before the replicas in a cluster. By default where nothing less will do, since
    it is one more thing between a caller and the model.

    Not written into the spec with the other defaults: a change of the spec would then not change it.
    """
    if spec.kubernetes.traffic_routing:
        return spec.kubernetes.traffic_routing == pb.TRAFFIC_ROUTING_ROUTER
    affinity = spec.rollout.session_affinity
    keeps_conversations = spec.rollout.HasField("canary") and affinity != pb.SESSION_AFFINITY_NONE
    sleeps = spec.autoscaling.HasField("min_replicas") and spec.autoscaling.min_replicas == 0
    backup = backup_of(spec, key.project)
    return keeps_conversations or sleeps or (backup is not None and backup.model_id != key.model_id)


def check_autoscaling(field: str, scaling: pb.Autoscaling, backend: pb.DeploymentBackend.ValueType) -> None:
    """Raises InvalidArgument."""
    if scaling.custom_metrics and backend == pb.DEPLOYMENT_BACKEND_LOCAL:
        raise InvalidArgument(
            f"{field}.custom_metrics",
            "need a cluster's custom metrics API, which the local backend does not have",
        )


def _check(spec: pb.DeploymentSpec, key: Key) -> None:
    if spec.HasField("kubernetes") and spec.backend != pb.DEPLOYMENT_BACKEND_KUBERNETES:
        raise InvalidArgument(
            "spec.kubernetes", "is only for the Kubernetes backend; remove it, or set spec.backend"
        )
    if spec.HasField("autoscaling"):
        check_autoscaling("spec.autoscaling", spec.autoscaling, spec.backend)
    _check_canary(spec.rollout)
    engine, gpus = spec.engine, spec.resources.gpus
    if engine.tensor_parallel_size > max(1, gpus):
        raise InvalidArgument(
            "spec.engine.tensor_parallel_size", f"is more than the {gpus} GPUs of spec.resources.gpus"
        )
    if engine.weight_type == pb.WEIGHT_TYPE_FP16 and gpus == 0:
        raise InvalidArgument("spec.engine.weight_type", "FP16 needs a GPU, but spec.resources.gpus is 0")
    if (
        spec.rollout.replacement == pb.REPLACEMENT_MODE_SWAP_ADAPTER
        and engine.adapter_mode != pb.ADAPTER_MODE_SWITCHED
    ):
        raise InvalidArgument(
            "spec.rollout.replacement", "SWAP_ADAPTER needs spec.engine.adapter_mode ADAPTER_MODE_SWITCHED"
        )
    backup = backup_of(spec, key.project)
    if backup == key:
        raise InvalidArgument("spec.recovery.backup", "is this deployment itself")


def _check_canary(rollout: pb.RolloutPolicy) -> None:
    steps = rollout.canary.steps
    for index, (before, after) in enumerate(pairwise(steps), 1):
        if after.weight_percent <= before.weight_percent:
            raise InvalidArgument(
                f"spec.rollout.canary.steps[{index}].weight_percent",
                f"must rise from step to step: {after.weight_percent} after {before.weight_percent}",
            )
    if rollout.HasField("canary") and not steps:
        raise InvalidArgument("spec.rollout.canary.steps", "is empty")


def _check_completed(spec: pb.DeploymentSpec) -> None:
    resources = spec.resources
    for kind in ("cpu", "memory"):
        limit, request = getattr(resources, f"{kind}_limit"), getattr(resources, f"{kind}_request")
        if limit and _parsed(f"{kind}_limit", limit) < _parsed(f"{kind}_request", request):
            raise InvalidArgument(
                f"spec.resources.{kind}_limit", f"{limit} is below the request of {request}"
            )
    _parsed("storage_request", resources.storage_request)
    recovery = spec.recovery
    if recovery.max_restart_backoff.ToTimedelta() < recovery.restart_backoff.ToTimedelta():
        raise InvalidArgument("spec.recovery.max_restart_backoff", "is shorter than restart_backoff")


def _parsed(name: str, text: str) -> Any:
    try:
        return quantities.amount(text)
    except ValueError as error:
        raise InvalidArgument(f"spec.resources.{name}", str(error)) from error


def _fill(spec: pb.DeploymentSpec, bundle: Bundle, defaults: Defaults) -> None:
    is_local = spec.backend == pb.DEPLOYMENT_BACKEND_LOCAL
    if spec.WhichOneof("scaling") is None:
        spec.replicas = 1
    for part in (spec.resources, spec.engine, spec.rollout, spec.thresholds, spec.recovery):
        part.SetInParent()
    if not is_local:
        spec.kubernetes.namespace = spec.kubernetes.namespace or defaults.namespace
        spec.kubernetes.image = spec.kubernetes.image or defaults.image
        spec.kubernetes.SetInParent()
    fill(spec)
    if spec.HasField("autoscaling"):
        _fill_autoscaling(spec.autoscaling)
    _fill_resources(spec.resources, bundle, spec.engine.weight_type)
    if is_local and not spec.engine.HasField("max_batch_size"):
        spec.engine.max_batch_size = 16
    recovery = spec.recovery
    if not recovery.HasField("max_restart_backoff"):
        longest = max(timedelta(minutes=5), recovery.restart_backoff.ToTimedelta())
        recovery.max_restart_backoff.FromTimedelta(longest)


def _fill_autoscaling(scaling: pb.Autoscaling) -> None:
    has_target = scaling.custom_metrics or any(
        scaling.HasField(name)
        for name in ("target_cpu_percent", "target_memory_percent", "target_concurrency")
    )
    if not has_target:
        scaling.target_cpu_percent = 80
    if scaling.min_replicas == 0 and not scaling.HasField("idle_timeout"):
        scaling.idle_timeout.FromTimedelta(timedelta(minutes=10))


def _fill_resources(
    resources: pb.ReplicaResources, bundle: Bundle, weight_type: pb.WeightType.ValueType
) -> None:
    weights = bundle.size_bytes + _base_bytes(bundle)
    # Weights are stored in two bytes each, and turned into four while they are loaded.
    loaded = weights * 2 if weight_type == pb.WEIGHT_TYPE_FP32 else weights
    # A fifth on top of the weights for what is computed with them.
    estimate = quantities.of_bytes(_ENGINE_BYTES + loaded + loaded // 5)
    if resources.memory_limit and not resources.memory_request:
        estimate = _least(estimate, resources.memory_limit)
    resources.memory_request = resources.memory_request or estimate
    resources.memory_limit = resources.memory_limit or resources.memory_request
    resources.storage_request = resources.storage_request or quantities.of_bytes(_IMAGE_BYTES + weights)


def _least(one: str, other: str) -> str:
    try:
        return min(one, other, key=quantities.parse)
    except ValueError:
        return one  # what is no quantity is refused with its name later


def _base_bytes(bundle: Bundle) -> int:
    """Of the base model's weights, which are not among the files: by the size in its name."""
    if not bundle.base_name:
        return 0
    sizes = _WEIGHTS_IN_NAME.findall(bundle.base_name.lower())
    if not sizes:
        return _UNKNOWN_BASE_BYTES
    number, unit = sizes[-1]
    return int(float(number) * (10**9 if unit == "b" else 10**6) * _BYTES_PER_WEIGHT)


def changed(spec: pb.DeploymentSpec, change: Callable[[pb.DeploymentSpec], object]) -> pb.DeploymentSpec:
    """A copy with a change; a spec that was handed out never changes."""
    copy = deepcopy(spec)
    change(copy)
    return copy
