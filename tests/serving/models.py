"""Tiny models with adapters, made on the spot, and the configurations that serve them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from neuroweaver.base_models.folders import digests
from trainer.tiny import tiny_llama


def tiny_base(folder: Path, *, context: int = 512) -> Path:
    """A tiny Llama in fp32 whose answers vary with the prompt and seldom end by themselves."""
    tiny_llama(folder, seed=3, hidden_size=64, context=context)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def adapter(base: Path, folder: Path, *, seed: int) -> Path:
    """A LoRA of the base, strong enough to change its answers; laid out as the trainer registers it."""
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False),
    )
    model.save_pretrained(folder / "adapter", safe_serialization=True)
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    return folder


def files_in(folder: Path) -> list[dict[str, Any]]:
    """The `files` of a configuration for all that lies in `folder`."""
    return [
        {
            "path": str(path.relative_to(folder)),
            "digest": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size_bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def config_for(base: Path, files_folder: Path | None = None, **changes: Any) -> dict[str, Any]:
    """The configuration that serves the adapter in `files_folder`, or the base alone, as model `tiny`."""
    return {
        "model": "tiny",
        "version": "1.0.0",
        "host": "127.0.0.1",
        "port": 0,
        "base_folder": str(base),
        "base_digest": digests(base).base,
        "files_folder": str(files_folder or ""),
        "files": files_in(files_folder) if files_folder else [],
        "weight_type": "fp32",
        **changes,
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path
