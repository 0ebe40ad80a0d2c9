"""The last stage: the adapter with its evidence becomes a version in the Registry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final, Literal

from google.protobuf import json_format, struct_pb2

from neuroweaver.artifacts.content import Content
from neuroweaver.artifacts.file import File
from neuroweaver.artifacts.transfer import Transfer, artifact_of
from neuroweaver.base_models.folders import Digests
from neuroweaver.mesh.machine.files import write_whole
from neuroweaver.mesh.wire import telemetry
from neuroweaver.trainer.worker.process.stages import Result
from neuroweaver.v1 import registry_pb2, registry_pb2_grpc
from neuroweaver.v1 import trainer_pb2 as pb

CALL_TIMEOUT_S: Final = 60.0

HIGHER: Final = registry_pb2.METRIC_DIRECTION_HIGHER_IS_BETTER
LOWER: Final = registry_pb2.METRIC_DIRECTION_LOWER_IS_BETTER

_SCORES: Final[Mapping[str, Literal["tuned_score", "base_score"]]] = {
    "judge_score": "tuned_score",
    "judge_score_base": "base_score",
}


@dataclass(frozen=True)
class Registration:
    job: pb.TrainingJob
    result: pb.TrainingResult
    adapter: Path
    folder: Path
    digests: Digests


def register(registration: Registration, registry: registry_pb2_grpc.RegistryServiceStub) -> Result:
    """Returns the new version and the digest of each artifact; a repeat, the same version.

    Raises grpc.RpcError, Refused.
    """
    config = registration.job.config
    registry.RegisterModel(
        registry_pb2.RegisterModelRequest(
            model=registry_pb2.Model(
                model_id=config.model_name,
                description=f"{config.base_model} specialised as {config.specialization}",
            ),
            allow_existing=True,
        ),
        timeout=CALL_TIMEOUT_S,
    )
    request = _request(registration)
    files, transfer = artifacts_of(registration), Transfer(registry)
    for artifact in request.artifacts:
        transfer.send(File.of(artifact), Content.of(files[artifact.path]))
    created = registry.CreateModelVersion(request, timeout=CALL_TIMEOUT_S)
    return {
        "version": created.version,
        "artifacts": {artifact.path: artifact.digest for artifact in request.artifacts},
        "bytes": sum(artifact.size_bytes for artifact in request.artifacts),
    }


def artifacts_of(registration: Registration) -> dict[str, Path]:
    """What belongs to the version, by its path there."""
    folder = registration.folder
    portable = folder / "registration"
    write_whole(portable / "adapter_config.json", _portable_adapter_config(registration))
    write_whole(portable / "training_config.json", _json(registration.job.config))
    write_whole(portable / "result.json", _json(registration.result))
    files = {
        "adapter/adapter_model.safetensors": registration.adapter / "adapter_model.safetensors",
        "adapter/adapter_config.json": portable / "adapter_config.json",
        "adapter/generation_config.json": registration.adapter / "generation_config.json",
        "training/config.json": portable / "training_config.json",
        "training/result.json": portable / "result.json",
        "training/evaluation.jsonl": folder / "evaluation.jsonl",
        "training/feedback.jsonl": folder / "feedback.jsonl",
        "training/ppo_steps.jsonl": folder / "ppo" / "steps.jsonl",
    }
    return {path: file for path, file in files.items() if file.is_file()}


def _portable_adapter_config(registration: Registration) -> bytes:
    """PEFT writes the folder of the base model on this machine; a version names the model instead."""
    content = json.loads((registration.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = registration.job.config.base_model
    return json.dumps(content, indent=2, sort_keys=True).encode()


def _request(registration: Registration) -> registry_pb2.CreateModelVersionRequest:
    """The same request in every attempt, so that its id finds the first answer."""
    path = registration.folder / "registration" / "request.bin"
    if path.is_file():
        return registry_pb2.CreateModelVersionRequest.FromString(path.read_bytes())
    job, result = registration.job, registration.result
    request = registry_pb2.CreateModelVersionRequest(
        model_id=job.config.model_name,
        bump=registry_pb2.BUMP_LEVEL_MINOR,
        description=f"trained by job {job.job_id}",
        config=json_format.ParseDict(_as_dict(job.config), struct_pb2.Struct()),
        metrics=metrics_of(result),
        tags={"specialization": job.config.specialization},
        base=registry_pb2.BasePin(
            name=job.config.base_model,
            model_digest=registration.digests.base,
            tokenizer_digest=registration.digests.tokenizer,
            chat_template_digest=registration.digests.chat_template or "",
        ),
        lineage=registry_pb2.Lineage(
            training_job_id=job.job_id,
            dataset_digest=job.dataset_digest,
            dataset_path=job.config.dataset_path,
            software_version=version_of("neuroweaver"),
            trace_id=telemetry.current_trace_id(),
        ),
        request_id=f"{job.job_id[:58]}-{hashlib.sha256(job.job_id.encode()).hexdigest()[:5]}",
    )
    files = sorted(artifacts_of(registration).items())
    request.artifacts.extend(artifact_of(Content.of(file).described(path)) for path, file in files)
    write_whole(path, request.SerializeToString(deterministic=True))
    return request


def metrics_of(result: pb.TrainingResult) -> dict[str, registry_pb2.Metric]:
    """The result's numbers with their direction and interval; what nobody could judge is not among them."""
    metrics = {
        "loss": registry_pb2.Metric(value=result.loss_after, direction=LOWER, unit="nats/token"),
        "loss_base": registry_pb2.Metric(value=result.loss_before, direction=LOWER, unit="nats/token"),
        "perplexity": registry_pb2.Metric(value=result.perplexity_after, direction=LOWER),
        "perplexity_base": registry_pb2.Metric(value=result.perplexity_before, direction=LOWER),
    }
    for name, score in _SCORES.items():
        samples = [getattr(sample, score) for sample in result.samples if sample.HasField(score)]
        if samples:
            metrics[name] = registry_pb2.Metric(
                value=result.metrics[score], direction=HIGHER, samples=samples
            )
    won = result.win_rate
    if won.wins + won.losses + won.ties:
        metrics["win_rate"] = registry_pb2.Metric(value=won.rate, direction=HIGHER, interval=won.interval)
    if result.HasField("reward_model"):
        quality = result.reward_model
        metrics["reward_model_accuracy"] = registry_pb2.Metric(
            value=quality.accuracy, direction=HIGHER, interval=quality.accuracy_interval
        )
    if result.HasField("policy_optimization"):
        metrics["ppo_kl"] = registry_pb2.Metric(
            value=result.policy_optimization.kl_last, direction=LOWER, unit="nats/response"
        )
    return metrics


def _as_dict(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _json(message: Any) -> bytes:
    return json.dumps(_as_dict(message), indent=2, sort_keys=True, ensure_ascii=False).encode()
