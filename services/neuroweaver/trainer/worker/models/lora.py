"""LoRA adapters on a base model: new, loaded, saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel

POLICY: Final = "default"
REFERENCE: Final = "reference"


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


def load_policy(model: Any, adapter: Path, *, is_trainable: bool) -> Any:
    """The base model with a saved adapter as the policy, in evaluation mode.

    is_trainable: the policy's weights take gradients, and a second, frozen copy is the reference. So the
    reference is the fine-tuned model, and the policy stays one LoRA over the untouched base.
    """
    policy = PeftModel.from_pretrained(model, str(adapter), adapter_name=POLICY, is_trainable=is_trainable)
    if is_trainable:
        policy.load_adapter(str(adapter), adapter_name=REFERENCE, is_trainable=False)
        policy.set_adapter(POLICY)
    return policy.eval()


def save_policy(policy: Any, folder: Path) -> None:
    """The policy's adapter alone, as safetensors, in `folder` itself."""
    policy.save_pretrained(str(folder), selected_adapters=[POLICY], safe_serialization=True)
