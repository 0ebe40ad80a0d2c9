"""Answers of a model to many chats."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from neuroweaver.base_models.chat_template import chat_template
from neuroweaver.trainer.data.turns import Messages
from neuroweaver.trainer.worker.data.chat import attention_mask, encode_prompt, padded
from neuroweaver.trainer.worker.models.nf4_cpu import packed_for_generation
from neuroweaver.trainer.worker.process.monitor import Monitor
from neuroweaver.trainer.worker.process.reproducibility import evaluating, seeded


@dataclass(frozen=True)
class Generation:
    """One answer: its text without special tokens, its token ids, and whether it ended itself.

    `tokens` includes the token that ends it if it is finished; if not, it was cut off at the limit.
    """

    text: str
    tokens: tuple[int, ...]
    finished: bool


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
    ends = end_tokens(model, tokenizer)
    config = generation_config(
        tokenizer.pad_token_id, ends, max_new_tokens=max_new_tokens, temperature=temperature
    )

    def stop_between_tokens(input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        monitor.check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    answers: dict[int, Generation] = {}
    produced = 0
    with evaluating(model), packed_for_generation(model), seeded(seed):
        for start in range(0, len(by_length), batch_size):
            monitor.check()
            batch = by_length[start : start + batch_size]
            rows = [prompts[index] for index in batch]
            input_ids = padded(rows, tokenizer.pad_token_id, side="left").to(model.device)
            output = model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask(rows, side="left").to(model.device),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([stop_between_tokens]),
            )
            for index, row in zip(batch, output[:, input_ids.shape[1] :].tolist(), strict=True):
                answers[index] = _answer(tokenizer, row, ends)
                produced += len(answers[index].tokens)
            monitor.report(step=len(answers), total_steps=len(prompts), tokens=produced)
    return [answers[index] for index in range(len(prompts))]


def _answer(tokenizer: Any, row: list[int], ends: Collection[int]) -> Generation:
    end = next((position for position, token in enumerate(row) if token in ends), None)
    tokens = row if end is None else row[: end + 1]
    return Generation(
        text=text_of(tokenizer, tokens, ends).strip(), tokens=tuple(tokens), finished=end is not None
    )


def text_of(tokenizer: Any, tokens: Sequence[int], ends: Collection[int]) -> str:
    """The answer's text. What ends it is none of it, though not every tokenizer calls that token special."""
    said = tokens[:-1] if tokens and tokens[-1] in ends else tokens
    return str(tokenizer.decode(said, skip_special_tokens=True))


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends an answer of the model."""
    return sorted(chat_template(tokenizer).ends(model.generation_config.eos_token_id))


def save_ends(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes what ends an answer beside an adapter, so that a server ends it there as training did."""
    ends = end_tokens(model, tokenizer)
    GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)


def generation_config(
    pad_token_id: int, ends: Sequence[int], *, max_new_tokens: int, temperature: float
) -> GenerationConfig:
    """Greedy at temperature 0; else drawn from the whole distribution."""
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends),
        pad_token_id=pad_token_id,
        **(sampling if temperature > 0 else {"do_sample": False}),
    )
