"""The tokenizer of a base model's folder, the same for training, counting and serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from neuroweaver.base_models.control_tokens import is_fault_of_tokenizer
from neuroweaver.base_models.rendering import words_of


class TokenizerUnusable(Exception):
    """The tokenizer cannot be loaded; the text says why."""


def load_tokenizer(folder: Path) -> Any:
    """Raises TokenizerUnusable.

    A tokenizer without a padding token pads with its end-of-sequence token, so mask by length, not by id.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
    except MemoryError:
        raise
    except BaseException as error:
        # What transformers raises for files that it cannot read is of no common kind.
        if not is_fault_of_tokenizer(error):
            raise
        told = f"{type(error).__name__}: {words_of(error)}"
        raise TokenizerUnusable(f"the tokenizer cannot be loaded: {told}") from error
    return tokenizer
