"""LoRA adapters on a base model: new, loaded, saved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

POLICY: Final = "default"
REFERENCE: Final = "reference"
# What PEFT puts before the name of each of the model's own weights.
WITHIN: Final = "base_model.model."


class UnknownLayers(ValueError):
    """None of the layers that are to get an adapter is there, or one of them cannot get any."""


def lora(rank: int, alpha: int, *, dropout: float = 0.0, target_modules: Sequence[str] = ()) -> LoraConfig:
    """target_modules: names of the layers that get an adapter; none for every linear layer but the head."""
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )


def require_layers(folder: Path, target_modules: Sequence[str]) -> None:
    """Raise UnknownLayers if the model of `folder` has none of them, tried without its weights."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    try:
        get_peft_model(model, lora(1, 1, target_modules=target_modules), low_cpu_mem_usage=True)
    except ValueError as error:
        names = ", ".join(target_modules)
        raise UnknownLayers(f"no layer of the base model named {names} can get an adapter") from error


def without_adapter(model: Any, target_modules: Sequence[str]) -> tuple[str, ...]:
    """The asked-for names that no layer has; where none are asked for, the layers that got no adapter.

    model: a PEFT model. Embeddings, head and what is no matrix, norms say, are not counted.
    """
    modules = dict(model.named_modules())
    adapted = [name for name, module in modules.items() if isinstance(module, BaseTunerLayer)]
    if target_modules:
        return tuple(
            target
            for target in target_modules
            if not any(f".{name}".endswith(f".{target}") for name in adapted)
        )
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    left_out = {id(module.weight) for module in ends if module is not None}
    left_out |= {id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding)}
    plain = [
        name
        for name, weight in model.named_parameters()
        if weight.ndim > 1
        and id(weight) not in left_out
        and not any(name.startswith(f"{layer}.") for layer in adapted)
    ]
    # The layers of a stack bear its number, `model.layers.11.mlp.gate`.
    return tuple(dict.fromkeys(re.sub(r"\.\d+(?=\.)", "", name).removeprefix(WITHIN) for name in plain))


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
