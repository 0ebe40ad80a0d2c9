"""The pods of a revision: an init container that fetches and verifies the artifacts, then the model server.

Two servers: vLLM where there are GPUs, NeuroWeaver's own where there are none. Neither runs as root, writes
to its image, or has a right in the cluster.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from neuroweaver.cluster import quantities
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.cluster.kinds import Object
from neuroweaver.deployer.domain.backend import DesiredRevision, DesiredState
from neuroweaver.deployer.domain.serving import serving_config
from neuroweaver.deployer.kubernetes.manifests.base_model import BaseModel, base_model, hub_environment
from neuroweaver.deployer.kubernetes.manifests.scope import Scope
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.kubernetes.naming.containers import FETCH, PORT, PORT_NAME, SERVER
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.mesh.wire.environment import changed
from neuroweaver.v1 import deployer_pb2 as pb

_USER: Final = 10001
_FILES: Final = "/models/files"
_CONFIG_FOLDER: Final = "/etc/neuroweaver"
_CONFIG_FILE: Final = "config.json"
_SOURCE_FILE: Final = "source.json"
_LIVENESS: Final = (Path(__file__).parents[1] / "in_pods" / "liveness.py").read_text(encoding="utf-8")
_LIVENESS_FILE: Final = "liveness.py"
_LIVENESS_S: Final = 20
"""The script waits at most 16 seconds for answers."""
_STALL_S: Final = 120
"""A server that has work and makes no token for so long hangs. A prompt read by itself makes none before its
end: 120 seconds are room for one of 120,000 tokens at _SLOWEST_PREFILL.
"""
_SLOWEST_PREFILL: Final = 1000
"""Tokens a second. GPUs that vLLM is worth running on read a prompt faster; where a longer context is allowed
than they read in _STALL_S, a server is given the time for it.
"""
_SCRATCH: Final = "/scratch"
NOTICE_S: Final = 5
"""Between the end of a pod's traffic and SIGTERM: kube-proxy on every node hears of it first."""
SERVING: Final[Object] = {
    "ports": [{"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"}],
    "lifecycle": {"preStop": {"sleep": {"seconds": NOTICE_S}}},
}
"""Of a container that answers requests."""
_LARGEST_CONFIG: Final = 200_000
"""Annotations of an object hold 256 KiB in all; the others need less than 16."""
_LARGEST_ADAPTER_RANK: Final = 64
"""vLLM refuses an adapter of a higher rank than it was started for, and keeps memory for that rank."""

_WEIGHTS: Final = {
    pb.WEIGHT_TYPE_UNSPECIFIED: "auto",
    pb.WEIGHT_TYPE_BF16: "bfloat16",
    pb.WEIGHT_TYPE_FP16: "half",
    pb.WEIGHT_TYPE_FP32: "float32",
}
_EFFECTS: Final = {
    pb.TAINT_EFFECT_NO_SCHEDULE: "NoSchedule",
    pb.TAINT_EFFECT_PREFER_NO_SCHEDULE: "PreferNoSchedule",
    pb.TAINT_EFFECT_NO_EXECUTE: "NoExecute",
}


def uses_vllm(spec: pb.DeploymentSpec) -> bool:
    return spec.resources.gpus > 0


def template(scope: Scope, revision: DesiredRevision) -> Object:
    """A pod template. Raises BackendError for what cannot be put into one."""
    wanted, spec, settings = scope.wanted, scope.spec, scope.settings
    options = spec.kubernetes
    is_vllm = uses_vllm(spec)
    base = base_model(revision, settings)
    # Our own server verifies a base model by itself; vLLM reads whatever is there.
    supplied = base if base is not None and (is_vllm or base.is_from_hub) else None
    spec_of_pod = pod(
        scope,
        options.service_account or scope.name,
        scope.selector(revision.number),
        has_token=False,
        initContainers=[_fetch(supplied, settings)],
        containers=[_server(scope, revision, base)],
        volumes=_volumes(base, is_vllm=is_vllm),
    )
    if options.node_selector:
        spec_of_pod["nodeSelector"] = dict(sorted(options.node_selector.items()))
    if tolerations := _tolerations(spec):
        spec_of_pod["tolerations"] = tolerations
    if options.runtime_class:
        spec_of_pod["runtimeClassName"] = options.runtime_class
    annotations = {
        identity.KEY: identity.key_annotation(wanted.key),
        identity.VERSION: revision.bundle.version,
        # In the template itself, so that a change of it is a change of the pods, and no object is left
        # behind.
        identity.CONFIG: _config(wanted, revision, base),
        identity.SOURCE: json.dumps(_source(wanted, supplied, settings)),
        **({identity.LIVENESS: _LIVENESS} if is_vllm else {}),
        "kubectl.kubernetes.io/default-container": SERVER,
    }
    labels = scope.labels | {identity.REVISION: str(revision.number)}
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec_of_pod}


def pod(scope: Scope, account: str, own: Mapping[str, str], *, has_token: bool, **fields: Any) -> Object:
    """What holds for every pod of a deployment, its router's too. own: the labels that tell these pods from
    others.
    """
    options = scope.spec.kubernetes
    drain_s = math.ceil(scope.spec.drain_timeout.ToTimedelta().total_seconds())
    made: Object = {
        "serviceAccountName": account,
        "automountServiceAccountToken": has_token,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": drain_s + 2 * NOTICE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        # Over nodes, as far as there are any, and whatever the number of replicas, so that another number
        # changes no pod.
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": dict(own)},
            }
        ],
    }
    if options.image_pull_secrets:
        made["imagePullSecrets"] = [{"name": name} for name in options.image_pull_secrets]
    if options.priority_class:
        made["priorityClassName"] = options.priority_class
    return made | fields


def container(name: str, image: str, command: list[str], **fields: Any) -> Object:
    return {
        "name": name,
        "image": image,
        "command": command,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    } | fields


def requests(spec: pb.DeploymentSpec) -> dict[str, str]:
    """What one pod asks its node for."""
    resources = spec.resources
    asked = {
        "cpu": _quantity("cpu_request", resources.cpu_request or "1"),
        "memory": _quantity("memory_request", resources.memory_request or "1Gi"),
    }
    if resources.storage_request:
        asked["ephemeral-storage"] = _quantity("storage_request", resources.storage_request)
    if resources.gpus:
        asked[resources.gpu_resource or "nvidia.com/gpu"] = str(resources.gpus)
    return asked


def limits(spec: pb.DeploymentSpec) -> dict[str, str]:
    """Raises BackendError if one lies below what is asked for."""
    resources, asked = spec.resources, requests(spec)
    given = {"memory": _quantity("memory_limit", resources.memory_limit or asked["memory"])}
    if resources.cpu_limit:
        given["cpu"] = _quantity("cpu_limit", resources.cpu_limit)
    for name, limit in given.items():
        if quantities.parse(limit) < quantities.parse(asked[name]):
            raise BackendError(
                Trouble.REFUSED,
                f"the limit {limit} is below the request {asked[name]}",
                field=f"spec.resources.{name}_limit",
            )
    if resources.gpus:  # an extended resource is never overcommitted
        given[resources.gpu_resource or "nvidia.com/gpu"] = str(resources.gpus)
    return given


def _quantity(name: str, text: str) -> str:
    try:
        return quantities.written(quantities.amount(text))
    except quantities.NotAQuantity as error:
        raise BackendError(Trouble.REFUSED, str(error), field=f"spec.resources.{name}") from error


def _fetch(base: BaseModel | None, settings: ClusterSettings) -> Object:
    """base: the one to be fetched or verified."""
    env: list[Object] = [{"name": "HOME", "value": _SCRATCH}]
    if base is not None and base.is_from_hub:
        env += hub_environment(settings)
    config, source = f"{_CONFIG_FOLDER}/{_CONFIG_FILE}", f"{_CONFIG_FOLDER}/{_SOURCE_FILE}"
    return container(
        FETCH,
        settings.fetch_image,
        ["python", "-P", "-m", "neuroweaver.deployer.kubernetes.in_pods.fetch"],
        args=["--config", config, "--source", source],
        env=env,
        resources={"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
        volumeMounts=[
            {"name": "config", "mountPath": _CONFIG_FOLDER, "readOnly": True},
            {"name": "files", "mountPath": _FILES},
            {"name": "scratch", "mountPath": _SCRATCH},
            *(base.supply_mounts() if base is not None else ()),
        ],
    )


def _server(scope: Scope, revision: DesiredRevision, base: BaseModel | None) -> Object:
    spec, settings = scope.spec, scope.settings
    mounts: list[Object] = [
        {"name": "config", "mountPath": _CONFIG_FOLDER, "readOnly": True},
        {"name": "files", "mountPath": _FILES, "readOnly": True},
        {"name": "scratch", "mountPath": _SCRATCH},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # of the container, a volume of its own
    ]
    if is_vllm := uses_vllm(spec):
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108  # likewise
    if base is not None:
        mounts.append(base.mount())
    if is_vllm:
        image, command = settings.vllm_image, ["vllm", "serve"]
        arguments = _vllm_arguments(scope.wanted, revision, base)
    else:
        image, command = settings.server_image, ["python", "-P", "-m", "neuroweaver.serving"]
        arguments = ["--config", f"{_CONFIG_FOLDER}/{_CONFIG_FILE}"]
    return container(
        SERVER,
        spec.kubernetes.image or image,
        command,
        args=arguments,
        env=_environment(settings, is_vllm=is_vllm),
        resources={"requests": requests(spec), "limits": limits(spec)},
        volumeMounts=mounts,
        **SERVING,
        **_probes(spec, is_vllm=is_vllm),
    )


def _probes(spec: pb.DeploymentSpec, *, is_vllm: bool) -> Object:
    """A live server makes tokens: ours proves it by itself, vLLM through a script of ours."""
    ready = asking("/health" if is_vllm else "/health/ready")
    patience_s = spec.startup_timeout.ToTimedelta().total_seconds() or 600.0
    if is_vllm:
        live = probe({"exec": {"command": _liveness(spec)}}, 10, 3, timeout_s=_LIVENESS_S)
    else:
        live = probe(asking("/health/live"), 10, 3)
    return {
        "startupProbe": probe(ready, 5, math.ceil(patience_s / 5)),
        "livenessProbe": live,
        "readinessProbe": probe(ready, 5, 2),
    }


def asking(path: str) -> Object:
    return {"httpGet": {"path": path, "port": PORT_NAME, "scheme": "HTTP"}}


def probe(action: Object, period_s: int, failures: int, *, timeout_s: int = 5) -> Object:
    return {**action, "periodSeconds": period_s, "timeoutSeconds": timeout_s, "failureThreshold": failures}


def _liveness(spec: pb.DeploymentSpec) -> list[str]:
    """Python without its site packages, which vLLM's image has many of: it runs every ten seconds."""
    stall_s = max(_STALL_S, math.ceil(spec.engine.max_context_tokens / _SLOWEST_PREFILL))
    return [
        "python3",
        "-IS",
        f"{_CONFIG_FOLDER}/{_LIVENESS_FILE}",
        f"--port={PORT}",
        f"--state={_SCRATCH}/liveness.json",
        f"--stall-s={stall_s}",
    ]


def _vllm_arguments(wanted: DesiredState, revision: DesiredRevision, base: BaseModel | None) -> list[str]:
    """An argument each, so that no value can become a second one."""
    engine, bundle = wanted.spec.engine, revision.bundle
    names = [wanted.key.model_id, f"{wanted.key.model_id}@{bundle.version}"]
    arguments = ["--host=0.0.0.0", f"--port={PORT}", "--load-format=safetensors"]
    # `/load` tells the liveness probe of requests that a hanging engine does not report.
    arguments.append("--enable-server-load-tracking")
    if base is not None:
        arguments = [
            f"--model={base.folder}",
            *arguments,
            f"--served-model-name={base.name}",
            "--enable-lora",
            f"--max-lora-rank={_LARGEST_ADAPTER_RANK}",
            # Two names are two adapters to vLLM, though of the same files: with one slot they would take
            # turns, batch by batch.
            f"--max-loras={len(names)}",
            f"--max-cpu-loras={len(names)}",
            "--lora-modules",
            *(f"{name}={_FILES}" for name in names),
        ]
    else:
        arguments = [f"--model={_FILES}", *arguments, "--served-model-name", *names]
    arguments.append(f"--dtype={_WEIGHTS[engine.weight_type]}")
    if engine.HasField("max_context_tokens"):
        arguments.append(f"--max-model-len={engine.max_context_tokens}")
    if engine.HasField("max_batch_size"):
        arguments.append(f"--max-num-seqs={engine.max_batch_size}")
    if engine.tensor_parallel_size > 1:
        arguments.append(f"--tensor-parallel-size={engine.tensor_parallel_size}")
    if engine.HasField("gpu_memory_share"):
        arguments.append(f"--gpu-memory-utilization={engine.gpu_memory_share:g}")
    return arguments


def http_limits(settings: ClusterSettings) -> list[Object]:
    """The environment of what reads `HttpLimits`: empty where all are the default, which change no pod."""
    return [{"name": name, "value": value} for name, value in changed(settings.http_limits).items()]


def _environment(settings: ClusterSettings, *, is_vllm: bool) -> list[Object]:
    """Everything that wants to write is sent to a volume, since the image is read-only."""
    values = {
        "HOME": _SCRATCH,
        "XDG_CACHE_HOME": f"{_SCRATCH}/cache",
        "HF_HOME": f"{_SCRATCH}/hub",
        "HF_HUB_OFFLINE": "1",
    }
    if is_vllm:
        values |= {
            "VLLM_CACHE_ROOT": f"{_SCRATCH}/vllm",
            "TRITON_CACHE_DIR": f"{_SCRATCH}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{_SCRATCH}/inductor",
            "VLLM_NO_USAGE_STATS": "1",
        }
    own = [] if is_vllm else http_limits(settings)
    return [*({"name": name, "value": value} for name, value in values.items()), *own]


def _volumes(base: BaseModel | None, *, is_vllm: bool) -> list[Object]:
    annotations = [(_CONFIG_FILE, identity.CONFIG), (_SOURCE_FILE, identity.SOURCE)]
    if is_vllm:
        annotations.append((_LIVENESS_FILE, identity.LIVENESS))
    items = [
        {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
        for path, annotation in annotations
    ]
    volumes: list[Object] = [
        {"name": "config", "downwardAPI": {"items": items}},
        *({"name": name, "emptyDir": {}} for name in ("files", "scratch", "tmp")),
    ]
    if is_vllm:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    if base is not None:
        volumes.append(base.volume())
    return volumes


def _config(wanted: DesiredState, revision: DesiredRevision, base: BaseModel | None) -> str:
    """The model server's configuration; the init container takes the files from it."""
    config = replace(
        serving_config(wanted, revision),
        host="0.0.0.0",  # noqa: S104  # the pod's own address; the NetworkPolicy says who reaches it
        port=PORT,
        files_folder=_FILES,
        base_folder=base.folder if base is not None else "",
        drain_s=wanted.spec.drain_timeout.ToTimedelta().total_seconds(),
    )
    text = json.dumps(config.plain(), separators=(",", ":"))
    if len(text) > _LARGEST_CONFIG:
        raise BackendError(
            Trouble.REFUSED,
            f"the version has {len(config.files)} files, more than a pod's annotations can list",
        )
    return text


def _source(wanted: DesiredState, base: BaseModel | None, settings: ClusterSettings) -> dict[str, Any]:
    """The init container's own configuration."""
    source = {"registry": settings.registry_address, "model_id": wanted.key.model_id}
    return source | (base.order() if base is not None else {})


def needs_hub(wanted: DesiredState, settings: ClusterSettings) -> bool:
    """Whether pods fetch a base model from the Hugging Face hub."""
    return not settings.base_claim and any(revision.bundle.base_name for revision in wanted.revisions)


def _tolerations(spec: pb.DeploymentSpec) -> list[Object]:
    made: list[Object] = []
    for toleration in spec.kubernetes.tolerations:
        is_equal = toleration.operator == pb.TOLERATION_OPERATOR_EQUAL
        each: Object = {"operator": "Equal" if is_equal else "Exists"}
        if toleration.key:
            each["key"] = toleration.key
        if is_equal:
            each["value"] = toleration.value
        if toleration.effect:
            each["effect"] = _EFFECTS[toleration.effect]
        made.append(each)
    if spec.resources.gpus:
        gpu = {
            "key": spec.resources.gpu_resource or "nvidia.com/gpu",
            "operator": "Exists",
            "effect": "NoSchedule",
        }
        if gpu not in made:
            made.append(gpu)
    return made
