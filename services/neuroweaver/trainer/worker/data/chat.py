"""Encoded chats as tensors, and the loss on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from neuroweaver.base_models.chat_template import chat_template
from neuroweaver.trainer.data.encoding import IGNORED, EncodedChat
from neuroweaver.trainer.data.turns import Messages


def encode_prompt(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of `messages` followed by the opening of an assistant turn."""
    return chat_template(tokenizer).prompt_ids(messages)


def padded(rows: Sequence[Sequence[int]], filler: int, *, side: str = "right") -> torch.Tensor:
    """The rows as one tensor, (len(rows), longest row)."""
    return pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=filler, padding_side=side
    )


def attention_mask(rows: Sequence[Sequence[int]], *, side: str = "right") -> torch.Tensor:
    """1 on the tokens of the rows, 0 on what `padded` adds."""
    return padded([[1] * len(row) for row in rows], 0, side=side)


def collate(chats: Sequence[EncodedChat], pad_token_id: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels of the chats, padded on the right: (len(chats), longest chat)."""
    rows = [chat.input_ids for chat in chats]
    return {
        "input_ids": padded(rows, pad_token_id),
        "attention_mask": attention_mask(rows),
        "labels": padded([chat.labels for chat in chats], IGNORED),
    }


def target_losses(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Negative log-likelihood in nats of each target token of a collated batch: (target tokens,), fp32.

    The language-model head sees the positions before targets alone: a vocabulary is large, and half of a
    chat's tokens belong to no assistant.
    """
    is_target = batch["labels"][:, 1:] != IGNORED
    precedes_target = torch.nn.functional.pad(is_target, (0, 1))

    def keep_preceding(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][precedes_target], *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(keep_preceding)
    try:
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    finally:
        hook.remove()
    targets = batch["labels"][:, 1:][is_target]
    return torch.nn.functional.cross_entropy(outputs.logits.float(), targets, reduction="none")
