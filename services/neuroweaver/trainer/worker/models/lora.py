"""New LoRA adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig


def lora(rank: int, alpha: int, *, dropout: float = 0.0, target_modules: Sequence[str] = ()) -> LoraConfig:
    """target_modules: names of the layers that get an adapter; none for every linear layer but the head."""
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )


def train_in_full_precision(model: Any) -> None:
    """Hold the trainable weights in fp32: in the base model's bf16, small updates round to nothing."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
