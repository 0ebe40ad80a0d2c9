"""A job's configuration: its defaults, and what no single field's rule can see."""

from __future__ import annotations

import math
from typing import Final

from neuroweaver.trainer.domain.offers import EMBEDDED_JUDGE
from neuroweaver.v1 import trainer_pb2 as pb

DEFAULTS: Final = pb.TrainingConfig(
    lora_r=16,
    lora_alpha=32,
    lora_dropout=0.05,
    epochs=3.0,
    learning_rate=2e-4,
    batch_size=8,
    gradient_accumulation_steps=4,
    max_seq_length=2048,
    warmup_steps=0,
    weight_decay=0.0,
    quantization=pb.QUANTIZATION_NONE,
    mixed_precision=pb.MIXED_PRECISION_BF16,
    gradient_checkpointing=False,
    seed=42,
    validation_fraction=0.1,
    enable_rlaif=True,
    feedback_model=EMBEDDED_JUDGE,
    rlaif_threshold=7.0,
    rlaif_samples=64,
    responses_per_prompt=4,
    algorithm=pb.ALGORITHM_PPO,
    kl_coeff=0.05,
    target_kl=6.0,
    ppo_steps=50,
    ppo_batch_size=16,
    ppo_learning_rate=1e-4,
    ppo_epochs=2,
    reward_model_epochs=2,
    max_new_tokens=128,
    fall_back_to_sft=False,
)
"""What a field means when it is left unset. A test compares the contract's comments and the help texts."""


def with_defaults(
    config: pb.TrainingConfig, *, context_length: int = 0, feedback_model: str = ""
) -> pb.TrainingConfig:
    """A copy in which every field holds the value in force.

    context_length: tokens that the base model can see, 0 if unknown. feedback_model: this server's default.
    """
    complete = pb.TrainingConfig()
    complete.CopyFrom(DEFAULTS)
    complete.feedback_model = feedback_model or DEFAULTS.feedback_model
    # A zero that the caller gave is set, so it wins; target_modules have no default that it could add to.
    complete.MergeFrom(config)
    if context_length and not config.HasField("max_seq_length"):
        complete.max_seq_length = min(DEFAULTS.max_seq_length, context_length)
    return complete


def unfit(config: pb.TrainingConfig, *, context_length: int) -> list[tuple[str, str]]:
    """What is wrong with a complete configuration: (field, reason) pairs."""
    violations: list[tuple[str, str]] = []
    if context_length and config.max_seq_length > context_length:
        reason = f"{config.max_seq_length} exceeds the base model's context of {context_length}"
        violations.append(("config.max_seq_length", reason))
    if context_length and config.max_new_tokens >= context_length:
        reason = f"{config.max_new_tokens} leaves no room in a context of {context_length}"
        violations.append(("config.max_new_tokens", reason))
    if config.enable_rlaif and config.ppo_batch_size < 2:
        reason = "must be at least 2: advantages are whitened over the batch"
        violations.append(("config.ppo_batch_size", reason))
    return violations


def fine_tuning_steps(config: pb.TrainingConfig, sequences: int) -> int:
    """The optimiser steps of fine-tuning on so many sequences."""
    batches = math.ceil(sequences / config.batch_size)
    return math.ceil(math.ceil(batches / config.gradient_accumulation_steps) * config.epochs)
