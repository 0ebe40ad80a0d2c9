"""The tokenizer of a base model's folder, the same for training, counting and serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer


class TokenizerUnusable(Exception):
    """The tokenizer cannot be loaded; the text says why."""


def load_tokenizer(folder: Path) -> Any:
    """Raises TokenizerUnusable.

    A tokenizer without a padding token pads with its end-of-sequence token, so mask by length, not by id.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        # What transformers raises for files that it cannot read is of no common kind.
        raise TokenizerUnusable(f"the tokenizer cannot be loaded: {type(error).__name__}: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
