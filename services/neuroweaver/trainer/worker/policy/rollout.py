"""What passes through the model in a PPO step: prompts, sampled responses, micro-batches of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuroweaver.trainer.worker.data.chat import attention_mask, padded


@dataclass(frozen=True)
class Prompt:
    """A prompt as the reward function reads it, and as the model does, chat template and all."""

    text: str
    input_ids: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """Prompts and the responses sampled for them.

    responses, mask: (batch, response_len); the mask is True up to and including the end of sequence.
    ended: (batch,), True where the response ended by itself.
    """

    prompts: tuple[Prompt, ...]
    responses: Tensor
    mask: Tensor
    ended: Tensor

    def keeping(self, kept: Tensor) -> Rollout:
        """The rows where `kept` (batch,) is True."""
        prompts = tuple(prompt for prompt, keep in zip(self.prompts, kept.tolist(), strict=True) if keep)
        return Rollout(prompts, self.responses[kept], self.mask[kept], self.ended[kept])


@dataclass(frozen=True)
class MicroBatch:
    """Sequences that pass through the model together, padded left and right to their own longest.

    rows: (n,) of the rollout. input_ids, attention_mask, position_ids: (n, prompt_len + response_len).
    mask: (n, response_len), True on response tokens.
    """

    rows: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    mask: Tensor

    @property
    def response_len(self) -> int:
        return self.mask.shape[1]

    @property
    def responses(self) -> Tensor:
        """(n, response_len)."""
        return self.input_ids[:, -self.response_len :]

    def rows_of(self, table: Tensor) -> Tensor:
        """This micro-batch's part, (n, response_len), of a table as wide as the rollout."""
        return table[self.rows, : self.response_len]

    def place(self, table: Tensor, numbers: Tensor) -> None:
        """Write numbers (n, response_len) into this micro-batch's part of a table, 0 outside the mask."""
        table[self.rows, : self.response_len] = numbers.masked_fill(~self.mask, 0)


Minibatch = list[MicroBatch]


def partition(
    rollout: Rollout, order: Sequence[int], minibatch_size: int, micro_batch_size: int, pad_token_id: int
) -> list[Minibatch]:
    """The rollout's rows in the given order, cut into minibatches of micro-batches."""
    minibatches = [order[i : i + minibatch_size] for i in range(0, len(order), minibatch_size)]
    return [
        [
            _micro_batch(rollout, rows[i : i + micro_batch_size], pad_token_id)
            for i in range(0, len(rows), micro_batch_size)
        ]
        for rows in minibatches
    ]


def _micro_batch(rollout: Rollout, rows: Sequence[int], pad_token_id: int) -> MicroBatch:
    device = rollout.responses.device
    index = torch.tensor(rows, device=device)
    mask = rollout.mask[index]
    mask = mask[:, : int(mask.sum(dim=1).max())]
    responses = rollout.responses[index, : mask.shape[1]]
    prompts = [rollout.prompts[row].input_ids for row in rows]
    prompt_ids = padded(prompts, pad_token_id, side="left").to(device)
    whole_mask = torch.cat([attention_mask(prompts, side="left").to(device), mask.long()], dim=1)
    return MicroBatch(
        rows=index,
        input_ids=torch.cat([prompt_ids, responses], dim=1),
        attention_mask=whole_mask,
        # The first real token is at position 0, however much padding stands before it.
        position_ids=(whole_mask.cumsum(dim=1) - 1).clamp(min=0),
        mask=mask,
    )
