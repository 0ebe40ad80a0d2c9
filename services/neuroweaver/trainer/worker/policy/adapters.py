"""LoRA adapters on a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel

from neuroweaver.trainer.worker.policy.actor import POLICY, REFERENCE


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
