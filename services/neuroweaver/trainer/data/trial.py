"""Whether a job can be made of a data set: whether the template takes its rows, and what each part has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from neuroweaver.trainer.data.rows import Example
from neuroweaver.trainer.data.split import split
from neuroweaver.trainer.data.tokens import TokenCount, count_tokens, try_shapes
from neuroweaver.trainer.data.turns import last_exchange

# A larger file is not split before the job does it: that takes long, and memory.
MAX_SPLIT_BYTES: Final = 16 << 20
# One of the shortest rows mostly has an answer; then no other is counted.
FIRST_COUNTED: Final = 16


@dataclass(frozen=True)
class Part:
    """One side of the split. questions: rows that RLAIF can ask. has_answer: whether the loss sees any."""

    rows: int
    questions: int
    has_answer: bool


@dataclass(frozen=True)
class Trial:
    """count: `sequences` and refusals. train, held_out: None of a large file, or of rows that are refused."""

    count: TokenCount
    train: Part | None = None
    held_out: Part | None = None


def try_job(
    tokenizer: Any,
    rows: Iterable[Example],
    *,
    max_seq_length: int,
    fraction: float,
    seed: int,
    is_large: bool,
) -> Trial:
    """tokenizer: None while the base model is still to come; then all that needs one is taken for good."""
    count = try_shapes(tokenizer, rows) if tokenizer else TokenCount()
    if count.refused or is_large:
        return Trial(count)
    parts = split(tuple(rows), fraction, seed)
    train, held_out = (_part(tokenizer, examples, max_seq_length) for examples in parts)
    return Trial(count, train, held_out)


def _part(tokenizer: Any, examples: Sequence[Example], limit: int) -> Part:
    return Part(
        rows=len(examples),
        questions=sum(last_exchange(example) is not None for example in examples),
        has_answer=tokenizer is None or _any_answered(tokenizer, examples, limit),
    )


def _any_answered(tokenizer: Any, examples: Sequence[Example], limit: int) -> bool:
    by_length = sorted(examples, key=lambda example: sum(len(turn.content) for turn in example.messages))
    parts = (by_length[:FIRST_COUNTED], by_length[FIRST_COUNTED:])
    return any(count_tokens(tokenizer, part, limit).trained for part in parts)
