"""Answers of a model to many chats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from neuroweaver.trainer.worker.data.chat import Messages, encode_prompt
from neuroweaver.trainer.worker.models.nf4_cpu import packed_for_generation
from neuroweaver.trainer.worker.process.monitor import Monitor
from neuroweaver.trainer.worker.process.reproducibility import evaluating, seeded


@dataclass(frozen=True)
class Generation:
    """One answer: its text without special tokens, its token ids, and whether it ended itself.

    `tokens` includes the end-of-sequence token if it is finished; if not, it was cut off at the limit.
    """

    text: str
    tokens: tuple[int, ...]
    finished: bool


class _Checkpoint(StoppingCriteria):
    """Lets the job stop a batch between two tokens."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        del scores, kwargs
        self.monitor.check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Messages],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    monitor: Monitor,
    batch_size: int = 32,
) -> list[Generation]:
    """The model's answer to each conversation, in their order; greedy at temperature 0.

    Reports answered conversations as steps. The same seed gives the same answers; the caller's random state
    and the model's training mode are left as they were. Raises Stopped between two tokens.
    """
    prompts = [encode_prompt(tokenizer, messages) for messages in conversations]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    end_tokens = _end_tokens(model, tokenizer)
    config = _config(tokenizer, end_tokens, max_new_tokens, temperature)
    stopping = StoppingCriteriaList([_Checkpoint(monitor)])
    answers: dict[int, Generation] = {}
    produced = 0
    with evaluating(model), packed_for_generation(model), seeded(seed):
        for start in range(0, len(by_length), batch_size):
            monitor.check()
            batch = by_length[start : start + batch_size]
            input_ids, attention_mask = left_pad([prompts[index] for index in batch], tokenizer.pad_token_id)
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=config,
                stopping_criteria=stopping,
            )
            for index, row in zip(batch, output[:, input_ids.shape[1] :].tolist(), strict=True):
                answers[index] = _answer(tokenizer, row, end_tokens)
                produced += len(answers[index].tokens)
            monitor.report(step=len(answers), total_steps=len(prompts), tokens=produced)
    return [answers[index] for index in range(len(prompts))]


def left_pad(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids padded on the left, and the mask that is 1 on real tokens; both (len(rows), longest row)."""
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, width - len(row) :] = torch.tensor(row)
        attention_mask[index, width - len(row) :] = 1
    return input_ids, attention_mask


def _answer(tokenizer: Any, row: list[int], end_tokens: list[int]) -> Generation:
    end = next((position for position, token in enumerate(row) if token in end_tokens), None)
    tokens = row if end is None else row[: end + 1]
    text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return Generation(text=text, tokens=tuple(tokens), finished=end is not None)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    declared = model.generation_config.eos_token_id
    tokens = declared if isinstance(declared, list) else [declared]
    return sorted({token for token in [*tokens, tokenizer.eos_token_id] if token is not None})


def _config(
    tokenizer: Any, end_tokens: list[int], max_new_tokens: int, temperature: float
) -> GenerationConfig:
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=end_tokens,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        **(sampling if temperature > 0 else {"do_sample": False}),
    )
