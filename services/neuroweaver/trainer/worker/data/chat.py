"""Chats as token ids, with labels on the assistant's turns alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from neuroweaver.base_models.chat_template import ChatTemplate, chat_template

Messages = Sequence[Mapping[str, str]]

# What the cross-entropy of torch skips.
IGNORED = -100


@dataclass(frozen=True)
class EncodedChat:
    """A chat up to its last assistant token; labels repeat the ids of assistant tokens, IGNORED elsewhere."""

    input_ids: list[int]
    labels: list[int]
    is_truncated: bool = False

    @property
    def target_tokens(self) -> int:
        """How many tokens the loss sees; the first position is predicted from nothing and never counts."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode_prompt(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of `messages` followed by the opening of an assistant turn."""
    return chat_template(tokenizer).prompt_ids(messages)


def encode_chat(tokenizer: Any, messages: Messages, *, max_length: int | None = None) -> EncodedChat:
    """The chat with labels on every assistant turn, its end-of-turn token included.

    Each turn is tokenised on its own, so that its context has the ids it has when the turn is generated. The
    last one ends as generation does, also where the template writes no end. Longer than `max_length`, the
    start is kept. Raises ValueError if the chat template renders a turn's context differently once the turn
    is there: such a template has no place where the turn begins.
    """
    template = chat_template(tokenizer)
    quoted = template.quoted(messages)
    input_ids: list[int] = []
    labels: list[int] = []
    rendered = ""
    for index, message in enumerate(quoted):
        if message["role"] != "assistant":
            continue
        whole = template.render(quoted[: index + 1], opens_turn=False)
        context = _context(template, quoted, index, whole)
        if not (context.startswith(rendered) and whole.startswith(context)):
            raise ValueError("the chat template rewrites earlier text when a turn is added")
        turn = template.until_end(whole[len(context) :])
        context_ids = template.token_ids(context[len(rendered) :], after=rendered)
        turn_ids = template.token_ids(turn, after=context)
        input_ids += context_ids + turn_ids
        labels += [IGNORED] * len(context_ids) + turn_ids
        rendered = context + turn
    if labels and template.end is not None and labels[-1] != template.end:
        input_ids.append(template.end)
        labels.append(template.end)
    if max_length is None or len(input_ids) <= max_length:
        return EncodedChat(input_ids, labels)
    return EncodedChat(input_ids[:max_length], labels[:max_length], is_truncated=True)


def _context(template: ChatTemplate, messages: Messages, index: int, whole: str) -> str:
    if index == 0:  # nothing was asked: plain text, for which a template may still open with a system turn
        return whole[: max(0, whole.find(messages[0]["content"].strip()))]
    return template.render(messages[:index], opens_turn=True)


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
