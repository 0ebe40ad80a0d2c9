"""The one place of the mesh that needs torch: a GGUF file becomes a folder of safetensors, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(source: Path, folder: Path, check: Callable[[], None]) -> None:
    """Write the model of the GGUF file `source` into `folder` as bfloat16 safetensors with its tokenizer.

    check: called between the long steps; what it raises ends the conversion.
    """
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    check()
    # Without `dequantize`, an installed `kernels` package would leave the weights packed in GGUF blocks.
    packed = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        local_files_only=True,
    )
    check()
    # A model loaded from GGUF refuses to be saved, so its weights move into one that never was quantised.
    config = AutoConfig.for_model(**_plain_config(packed.config.to_dict()))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain_config(config: dict[str, Any]) -> dict[str, Any]:
    foreign = {"quantization_config", "_name_or_path", "_model_name_or_path"}
    return {key: value for key, value in config.items() if key not in foreign}
