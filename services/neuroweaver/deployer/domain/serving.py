"""How the model server of a revision is configured, wherever it runs."""

from __future__ import annotations

from typing import Final

from neuroweaver.artifacts.serving_config import ServingConfig, WeightType
from neuroweaver.deployer.domain.backend import DesiredRevision, DesiredState
from neuroweaver.v1 import deployer_pb2 as pb

_WEIGHT_TYPES: Final[dict[int, WeightType]] = {
    pb.WEIGHT_TYPE_BF16: "bf16",
    pb.WEIGHT_TYPE_FP16: "fp16",
    pb.WEIGHT_TYPE_FP32: "fp32",
}


def serving_config(wanted: DesiredState, revision: DesiredRevision) -> ServingConfig:
    """Without its addresses and folders, which its backend knows."""
    engine, bundle = wanted.spec.engine, revision.bundle
    limits = {}
    for name in ("max_context_tokens", "max_batch_size", "max_queue_size"):
        if engine.HasField(name):
            limits[name] = getattr(engine, name)
    return ServingConfig(
        model=wanted.key.model_id,
        version=bundle.version,
        revision=revision.number,
        files=bundle.files,
        base_digest=bundle.base_model_digest,
        tokenizer_digest=bundle.base_tokenizer_digest,
        chat_template_digest=bundle.base_chat_template_digest,
        weight_type=_WEIGHT_TYPES.get(engine.weight_type, ""),
        adapter_mode="switched" if engine.adapter_mode == pb.ADAPTER_MODE_SWITCHED else "merged",
        **limits,
    )
