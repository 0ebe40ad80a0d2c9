"""A base model of a local folder, loaded plain or quantised."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from neuroweaver.base_models.tokenizer import load_tokenizer
from neuroweaver.trainer.worker.models.nf4_cpu import keep_trainable

Quantization = Literal["none", "nf4", "int8"]


def load(
    folder: Path,
    *,
    quantization: Quantization = "none",
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
) -> tuple[Any, Any]:
    """The causal language model of `folder` in evaluation mode, and its tokenizer.

    `dtype` is that of the unquantised weights and of the computation. A tokenizer whose padding token is none
    of the model's pads with its end-of-sequence token, so mask by length, not by id.
    """
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": device},
        quantization_config=_quantization_config(quantization, dtype),
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    )
    # Fine-tuners add `[PAD]` to a tokenizer and leave the embedding as it was.
    if (
        tokenizer.pad_token_id is None
        or tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings
    ):
        tokenizer.pad_token = tokenizer.eos_token
    if quantization == "nf4":
        keep_trainable(model)
    return model.eval(), tokenizer


def _quantization_config(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantization == "nf4":
        # NF4 with double quantisation: Dettmers et al. 2023, arXiv 2305.14314, section 3.
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if quantization == "int8":
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast_notice)
        return BitsAndBytesConfig(load_in_8bit=True)
    if quantization == "none":
        return None
    raise ValueError(f"quantization must be none, nf4 or int8, not {quantization!r}")


def _is_no_cast_notice(record: logging.LogRecord) -> bool:
    # Said once for every layer of every forward pass.
    return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")
