"""Whether the tuned model is better: perplexity on held-out chats, and how often its answer wins."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch

from neuroweaver.statistics.wilson import wilson_interval
from neuroweaver.trainer.data.encoding import EncodedChat, encode
from neuroweaver.trainer.data.turns import Messages
from neuroweaver.trainer.worker.data.chat import collate, target_losses
from neuroweaver.trainer.worker.process.monitor import Monitor
from neuroweaver.trainer.worker.process.reproducibility import evaluating

Verdict = Literal["win", "loss", "tie"]

CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class TokenLoss:
    """Mean negative log-likelihood (nats a token) over `tokens` assistant tokens; NaN over none."""

    mean: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean)


@dataclass(frozen=True)
class WinRate:
    """Share of judged prompts the tuned model won, a tie as half a win, with its Wilson score interval.

    `missing` prompts have no verdict and count nowhere. Where all are missing the rate is 0, the interval all
    of [0, 1].
    """

    wins: int
    losses: int
    ties: int
    missing: int
    win_rate: float
    win_rate_lower: float
    win_rate_upper: float
    confidence: float


def perplexity(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Messages],
    monitor: Monitor,
    *,
    max_length: int | None = None,
    batch_size: int = 8,
) -> TokenLoss:
    """Loss and perplexity of the chats' assistant tokens under the model."""
    chats = [chat for messages in examples for chat in encode(tokenizer, messages)]
    if max_length is not None:
        chats = [chat.cut(max_length) for chat in chats]
    return token_loss(model, chats, tokenizer.pad_token_id, monitor, batch_size=batch_size)


def token_loss(
    model: Any, chats: Sequence[EncodedChat], pad_token_id: int, monitor: Monitor, *, batch_size: int = 8
) -> TokenLoss:
    """Loss over the chats' target tokens, each token with the same weight, without dropout."""
    useful = sorted((chat for chat in chats if chat.target_tokens), key=lambda chat: len(chat.input_ids))
    total, tokens = 0.0, 0
    with evaluating(model), torch.no_grad():
        for start in range(0, len(useful), batch_size):
            monitor.check()
            batch = collate(useful[start : start + batch_size], pad_token_id)
            losses = target_losses(model, {name: value.to(model.device) for name, value in batch.items()})
            total += losses.sum().item()
            tokens += len(losses)
    return TokenLoss(mean=total / tokens if tokens else math.nan, tokens=tokens)


def win_rate(verdicts: Iterable[Verdict | None]) -> WinRate:
    """Wins, losses and ties with the share of wins; None is a missing judgement."""
    counts = Counter(verdicts)
    wins, losses, ties = counts["win"], counts["loss"], counts["tie"]
    judged = wins + losses + ties
    successes = wins + ties / 2
    lower, upper = wilson_interval(successes, judged, confidence=CONFIDENCE)
    return WinRate(
        wins=wins,
        losses=losses,
        ties=ties,
        missing=counts[None],
        win_rate=successes / max(judged, 1),
        win_rate_lower=lower,
        win_rate_upper=upper,
        confidence=CONFIDENCE,
    )
