"""A reward model: trained on preference pairs, checked on pairs of unseen prompts.

The loop is our own: TRL's RewardTrainer silently drops over-long pairs, finds the last token by the id of the
padding, which may be the end of sequence, and keeps the head in the base model's type, where bf16 rounds
differences of scores away.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from neuroweaver.mesh.machine.files import whole_folder
from neuroweaver.statistics.wilson import wilson_interval
from neuroweaver.trainer.worker.models.lora import lora
from neuroweaver.trainer.worker.process.checkpoints import SAVE_EVERY, last_checkpoint, load_state, save_state
from neuroweaver.trainer.worker.process.monitor import Monitor
from neuroweaver.trainer.worker.process.optimizer import adamw, clipped_step
from neuroweaver.trainer.worker.process.reproducibility import seeded
from neuroweaver.trainer.worker.reward.network import RewardModel, RewardScale, bradley_terry_loss
from neuroweaver.trainer.worker.reward.preferences import (
    NotEnoughFeedback,
    PreferencePair,
    longer_is_better,
    ordered_prompts,
)

MODEL: Final = "model"
MAX_GRAD_NORM: Final = 1.0
# Bounds the memory of a step: activations of a 135M model take some 1.5 MB a token.
MICRO_BATCH_TOKENS = 2048
SCORING_PAIRS: Final = 16


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Hyper-parameters of a reward model.

    epochs: passes over the pairs. batch_size: pairs in one optimiser step. max_seq_length: tokens of
    conversation and response together; a pair with more on either side is left out. warmup_fraction: share of
    the steps in which the learning rate rises; afterwards it falls linearly to 0. save_steps: steps between
    two checkpoints.
    """

    epochs: int
    max_seq_length: int
    seed: int
    lora_r: int = 16
    lora_alpha: int = 32
    learning_rate: float = 2e-4
    head_learning_rate: float = 1e-3
    warmup_fraction: float = 0.1
    batch_size: int = 8
    save_steps: int = SAVE_EVERY


@dataclass(frozen=True, kw_only=True)
class RewardModelResult:
    """What training gave.

    folder: what RewardModel.load reads. accuracy: share of held-out pairs ordered as the judge ordered them,
    with its 95 % Wilson interval; length_rule_accuracy: of the rule "longer is better" on the same pairs.
    loss_before, loss_after: nats a held-out pair. dropped: pairs, held-out ones too, left out as over-long.
    losses: of every step, also of those before a resume. prompts_upper: upper end of the 95 % Wilson interval
    of the share of held-out conversations that it orders as the judge did.
    """

    folder: Path
    accuracy: float
    accuracy_lower: float
    accuracy_upper: float
    length_rule_accuracy: float
    loss_before: float
    loss_after: float
    train_pairs: int
    heldout_pairs: int
    dropped: int
    losses: tuple[float, ...]
    prompts_upper: float


@dataclass(frozen=True)
class EncodedPair:
    chosen: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        return max(len(self.chosen), len(self.rejected))


def train_reward_model(
    base: Any,
    tokenizer: Any,
    train_pairs: Sequence[PreferencePair],
    heldout_pairs: Sequence[PreferencePair],
    *,
    config: RewardConfig,
    folder: Path,
    monitor: Monitor,
    resume: bool,
) -> RewardModelResult:
    """Train on `train_pairs` over the base model, check on `heldout_pairs`, save under `folder`.

    With `resume`, an unfinished run goes on from its last whole checkpoint, to the same weights; without,
    `folder` is emptied. Raises Stopped before the next batch, TrainingDiverged, and NotEnoughFeedback if
    either set of pairs is empty without the over-long ones.
    """
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with seeded(config.seed):
        reward = RewardModel.fresh(base, tokenizer, lora(config.lora_r, config.lora_alpha))
        train = _encoded(reward, train_pairs, config.max_seq_length)
        heldout = _encoded(reward, heldout_pairs, config.max_seq_length)
        if not train or not heldout:
            raise NotEnoughFeedback(
                f"no pair fits into max_seq_length, {config.max_seq_length} tokens, to train on or to check "
                "with: raise it, or lower max_new_tokens"
            )
        encoded_heldout = [pair for pair, _ in heldout]
        loss_before = bradley_terry_loss(*_scores(reward, encoded_heldout, monitor)).item()
        losses = _Training(reward, [pair for pair, _ in train], config, folder, monitor).run()
        chosen, rejected = _scores(reward, encoded_heldout, monitor)
        reward.scale = _scale(torch.cat(_scores(reward, [pair for pair, _ in train], monitor)))
    with whole_folder(folder / MODEL) as partial:
        reward.save(partial)
    correct = int((chosen > rejected).sum())
    lower, upper = wilson_interval(correct, len(heldout))
    _, prompts_upper = wilson_interval(
        *ordered_prompts([pair for _, pair in heldout], (chosen > rejected).tolist())
    )
    return RewardModelResult(
        folder=folder / MODEL,
        accuracy=correct / len(heldout),
        accuracy_lower=lower,
        accuracy_upper=upper,
        length_rule_accuracy=longer_is_better([pair for _, pair in heldout]),
        loss_before=loss_before,
        loss_after=bradley_terry_loss(chosen, rejected).item(),
        train_pairs=len(train),
        heldout_pairs=len(heldout),
        dropped=len(train_pairs) + len(heldout_pairs) - len(train) - len(heldout),
        losses=tuple(losses),
        prompts_upper=prompts_upper,
    )


class _Training:
    """The optimiser's steps, with what a resumed run needs to take the ones it would have taken."""

    def __init__(
        self,
        reward: RewardModel,
        pairs: Sequence[EncodedPair],
        config: RewardConfig,
        folder: Path,
        monitor: Monitor,
    ) -> None:
        self.reward = reward
        self.pairs = pairs
        self.config = config
        self.folder = folder
        self.monitor = monitor
        self.weights = reward.adapter() | {"score_head": reward.head.weight}
        self.peaks = (config.learning_rate, config.head_learning_rate)
        self.optimizer = adamw(
            reward.adapter().values(),
            [reward.head.weight],
            learning_rate=config.learning_rate,
            head_learning_rate=config.head_learning_rate,
        )
        self.total_steps = math.ceil(len(pairs) / config.batch_size) * config.epochs
        self.losses: list[float] = []
        self.tokens = 0

    def run(self) -> list[float]:
        """The loss of every step, also of those before a resume."""
        self._restore()
        self.reward.model.train()
        done = len(self.losses)
        self.monitor.report(step=done, total_steps=self.total_steps, tokens=self.tokens)
        for step, batch in enumerate(self._batches(), start=1):
            if step <= done:
                continue
            self.monitor.check()
            self._step(step, batch)
            if step % self.config.save_steps == 0 and step < self.total_steps:
                save_state(self.folder, step, self._state())
        self.reward.model.eval()
        return self.losses

    def _step(self, step: int, batch: Sequence[EncodedPair]) -> None:
        factor = _rate_factor(step, self.total_steps, self.config.warmup_fraction)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.optimizer.zero_grad()
        loss, correct = 0.0, 0
        for micro in _micro_batches(batch):
            chosen, rejected = self.reward.forward(_rows(micro)).chunk(2)
            part = bradley_terry_loss(chosen, rejected) * (len(micro) / len(batch))
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
            correct += int((chosen > rejected).sum())
            self.tokens += sum(map(len, _rows(micro)))
        norm = clipped_step(self.optimizer, MAX_GRAD_NORM, loss=loss, at=f"reward model, step {step}")
        self.losses.append(loss)
        self.monitor.report(
            step=step,
            total_steps=self.total_steps,
            tokens=self.tokens,
            metrics={
                "loss": loss,
                "accuracy": correct / len(batch),
                "learning_rate": self.config.learning_rate * factor,
                "grad_norm": norm,
            },
        )

    def _batches(self) -> Iterator[list[EncodedPair]]:
        size = self.config.batch_size
        for epoch in range(self.config.epochs):
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.pairs), generator=generator).tolist()
            for start in range(0, len(order), size):
                yield [self.pairs[index] for index in order[start : start + size]]

    def _state(self) -> dict[str, Any]:
        return {
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "losses": self.losses,
            "tokens": self.tokens,
        }

    def _restore(self) -> None:
        checkpoint = last_checkpoint(self.folder)
        if checkpoint is None:
            return
        state = load_state(checkpoint)
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.losses = list(state["losses"])
        self.tokens = state["tokens"]


def _micro_batches(pairs: Sequence[EncodedPair]) -> list[list[EncodedPair]]:
    """The pairs by length, in parts that padded take MICRO_BATCH_TOKENS at most, or one pair."""
    parts: list[list[EncodedPair]] = [[]]
    for pair in sorted(pairs, key=lambda pair: pair.length):
        if parts[-1] and 2 * (len(parts[-1]) + 1) * pair.length > MICRO_BATCH_TOKENS:
            parts.append([])
        parts[-1].append(pair)
    return parts


def _encoded(
    reward: RewardModel, pairs: Sequence[PreferencePair], max_length: int
) -> list[tuple[EncodedPair, PreferencePair]]:
    encoded = [
        EncodedPair(reward.encode(pair.messages, pair.chosen), reward.encode(pair.messages, pair.rejected))
        for pair in pairs
    ]
    return [(rows, pair) for rows, pair in zip(encoded, pairs, strict=True) if rows.length <= max_length]


def _scores(reward: RewardModel, pairs: Sequence[EncodedPair], monitor: Monitor) -> tuple[Tensor, Tensor]:
    """Raw scores of the chosen and of the rejected responses, each (len(pairs),)."""
    parts = []
    for start in range(0, len(pairs), SCORING_PAIRS):
        monitor.check()
        rows = _rows(pairs[start : start + SCORING_PAIRS])
        parts.append(torch.stack(reward.raw_scores(rows).chunk(2)))
    chosen, rejected = torch.cat(parts, dim=1)
    return chosen, rejected


def _rows(pairs: Sequence[EncodedPair]) -> list[list[int]]:
    """The chosen responses, then the rejected ones."""
    return [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]


def _scale(scores: Tensor) -> RewardScale:
    std = scores.std(correction=0).item()
    # Where all scores are one, their spread says nothing; dividing by it would make noise into rewards.
    return RewardScale(mean=scores.mean().item(), std=std if std > 0 else 1.0)


def _rate_factor(step: int, total_steps: int, warmup_fraction: float) -> float:
    """Share of the peak learning rate in step 1 to total_steps."""
    warmup = max(1, round(warmup_fraction * total_steps))
    return min(step / warmup, (total_steps - step + 1) / max(1, total_steps - warmup + 1))
