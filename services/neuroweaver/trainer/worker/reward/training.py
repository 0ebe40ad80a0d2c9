"""A reward model: trained on preference pairs, checked on pairs of unseen prompts.

The loop is our own: TRL's RewardTrainer drops over-long pairs without a word, finds the last token by the id
of the padding, which may be the end of sequence, and keeps the head in the base model's type, where bf16
rounds differences of scores away. What is left of a trainer after that is one loss and one optimiser.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from neuroweaver.mesh.machine.files import read_json, whole_folder, write_json
from neuroweaver.statistics.wilson import wilson_interval
from neuroweaver.trainer.worker.models.base import Quantization, load
from neuroweaver.trainer.worker.process.checkpoints import TrainingDiverged, checkpoints
from neuroweaver.trainer.worker.process.monitor import Monitor
from neuroweaver.trainer.worker.process.reproducibility import seeded
from neuroweaver.trainer.worker.reward.network import RewardModel, RewardScale, bradley_terry_loss
from neuroweaver.trainer.worker.reward.preferences import (
    FeedbackGroup,
    JudgedResponse,
    NotEnoughFeedback,
    PreferencePair,
    group_feedback,
    longer_is_better,
    pairs_from_feedback,
)

__all__ = [
    "FeedbackGroup",
    "JudgedResponse",
    "PreferencePair",
    "RewardConfig",
    "RewardModel",
    "RewardModelResult",
    "RewardScale",
    "bradley_terry_loss",
    "group_feedback",
    "longer_is_better",
    "pairs_from_feedback",
    "train_reward_model",
]

MODEL = "model"
RESULT = "result.json"
STATE = "state.pt"
MAX_GRAD_NORM = 1.0
# Bounds the memory of a step: activations of a 135M model take some 1.5 MB a token.
MICRO_BATCH_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Hyper-parameters of a reward model.

    batch_size: pairs in one optimiser step. max_seq_length: tokens of conversation and response together; a
    pair with more on either side is left out. warmup_fraction: share of the steps in which the learning rate
    rises; afterwards it falls linearly to 0. save_steps: steps between two checkpoints; 0 for none.
    """

    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    epochs: int = 1
    learning_rate: float = 2e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup_fraction: float = 0.1
    batch_size: int = 8
    max_seq_length: int = 2048
    save_steps: int = 10
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RewardModelResult:
    """What training gave.

    folder: what RewardModel.load reads. accuracy: share of held-out pairs ordered as the judge ordered them,
    with its 95 % Wilson interval; length_rule_accuracy: of the rule "longer is better" on the same pairs.
    loss_before, loss_after: nats a held-out pair. dropped: pairs, held-out ones too, left out as over-long.
    seconds: time spent training since the last resume.
    """

    folder: Path
    accuracy: float
    lower: float
    upper: float
    length_rule_accuracy: float
    loss_before: float
    loss_after: float
    train_pairs: int
    heldout_pairs: int
    dropped: int
    losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class EncodedPair:
    chosen: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        return max(len(self.chosen), len(self.rejected))


def train_reward_model(
    base_folder: Path,
    train_pairs: Sequence[PreferencePair],
    heldout_pairs: Sequence[PreferencePair],
    *,
    config: RewardConfig,
    folder: Path,
    monitor: Monitor,
    resume: bool,
    quantization: Quantization = "none",
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
) -> RewardModelResult:
    """Train on `train_pairs`, check on `heldout_pairs`, save under `folder`.

    With `resume`, a finished run's result is given at once and an unfinished one goes on from its last whole
    checkpoint, to the same weights; without, `folder` is emptied. Raises Stopped before the next batch,
    TrainingDiverged, and NotEnoughFeedback if either set of pairs is empty without the over-long ones.
    """
    if resume and (known := read_json(folder / RESULT)) is not None:
        return RewardModelResult(**known | {"folder": folder / MODEL, "losses": tuple(known["losses"])})
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with seeded(config.seed):
        base, tokenizer = load(base_folder, quantization=quantization, dtype=dtype, device=device)
        reward = RewardModel.fresh(base, tokenizer, _adapter(config))
        train = _encoded(reward, train_pairs, config.max_seq_length)
        heldout = _encoded(reward, heldout_pairs, config.max_seq_length)
        if not train or not heldout:
            raise NotEnoughFeedback(
                f"no pair within {config.max_seq_length} tokens to train on or to check with"
            )
        loss_before = _loss(*_scores(reward, [pair for pair, _ in heldout], monitor))
        started = time.monotonic()
        losses = _Training(reward, [pair for pair, _ in train], config, folder, monitor).run()
        seconds = time.monotonic() - started
        chosen, rejected = _scores(reward, [pair for pair, _ in heldout], monitor)
        reward.scale = _scale(torch.cat(_scores(reward, [pair for pair, _ in train], monitor)))
    with whole_folder(folder / MODEL) as partial:
        reward.save(partial)
    right = int((chosen > rejected).sum())
    lower, upper = wilson_interval(right, len(heldout))
    result = RewardModelResult(
        folder=folder / MODEL,
        accuracy=right / len(heldout),
        lower=lower,
        upper=upper,
        length_rule_accuracy=longer_is_better([pair for _, pair in heldout]),
        loss_before=loss_before,
        loss_after=_loss(chosen, rejected),
        train_pairs=len(train),
        heldout_pairs=len(heldout),
        dropped=len(train_pairs) + len(heldout_pairs) - len(train) - len(heldout),
        losses=tuple(losses),
        seconds=seconds,
    )
    write_json(folder / RESULT, dataclasses.asdict(result) | {"folder": MODEL})
    return result


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
        self.weights = reward.trainable()
        head = self.weights["score_head"]
        adapter = [weight for weight in self.weights.values() if weight is not head]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": adapter, "lr": config.learning_rate, "peak": config.learning_rate},
                {"params": [head], "lr": config.head_learning_rate, "peak": config.head_learning_rate},
            ],
            weight_decay=config.weight_decay,
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
            if self.config.save_steps and step % self.config.save_steps == 0 and step < self.total_steps:
                self._save(step)
        self.reward.model.eval()
        return self.losses

    def _step(self, step: int, batch: Sequence[EncodedPair]) -> None:
        factor = _rate_factor(step, self.total_steps, self.config.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.zero_grad()
        loss, right = 0.0, 0
        for micro in _micro_batches(batch):
            rows = [pair.chosen for pair in micro] + [pair.rejected for pair in micro]
            chosen, rejected = self.reward.forward(rows).chunk(2)
            part = bradley_terry_loss(chosen, rejected) * (len(micro) / len(batch))
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
            right += int((chosen > rejected).sum())
            self.tokens += sum(len(row) for row in rows)
        norm = torch.nn.utils.clip_grad_norm_(list(self.weights.values()), MAX_GRAD_NORM)
        if not math.isfinite(loss) or not torch.isfinite(norm):
            raise TrainingDiverged(f"the reward model's loss is {loss} at step {step}")
        self.optimizer.step()
        self.losses.append(loss)
        self.monitor.report(
            step=step,
            total_steps=self.total_steps,
            tokens=self.tokens,
            metrics={
                "loss": loss,
                "accuracy": right / len(batch),
                "learning_rate": self.config.learning_rate * factor,
                "grad_norm": norm.item(),
            },
        )

    def _batches(self) -> Iterator[list[EncodedPair]]:
        size = self.config.batch_size
        for epoch in range(self.config.epochs):
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.pairs), generator=generator).tolist()
            for start in range(0, len(order), size):
                yield [self.pairs[index] for index in order[start : start + size]]

    def _save(self, step: int) -> None:
        state = {
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "losses": self.losses,
            "tokens": self.tokens,
        }
        outdated = checkpoints(self.folder)
        with whole_folder(self.folder / f"checkpoint-{step}") as partial:
            torch.save(state, partial / STATE)
        for folder in outdated:
            shutil.rmtree(folder)

    def _restore(self) -> None:
        found = checkpoints(self.folder)
        if not found:
            return
        state: dict[str, Any] = torch.load(found[-1] / STATE, map_location="cpu", weights_only=True)
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


def _adapter(config: RewardConfig) -> LoraConfig:
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


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
    size = 16
    scored = []
    for start in range(0, len(pairs), size):
        monitor.check()
        batch = pairs[start : start + size]
        rows = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
        scored.append(torch.stack(reward.raw_scores(rows).chunk(2)))
    chosen, rejected = torch.cat(scored, dim=1)
    return chosen, rejected


def _loss(chosen: Tensor, rejected: Tensor) -> float:
    return bradley_terry_loss(chosen, rejected).item()


def _scale(scores: Tensor) -> RewardScale:
    std = scores.std(correction=0).item()
    # Where all scores are one, their spread says nothing; dividing by it would make noise into rewards.
    return RewardScale(mean=scores.mean().item(), std=std if std > 0 else 1.0)


def _rate_factor(step: int, total_steps: int, warmup_fraction: float) -> float:
    """Share of the peak learning rate in step 1 to total_steps."""
    warmup = max(1, round(warmup_fraction * total_steps))
    return min(step / warmup, (total_steps - step + 1) / max(1, total_steps - warmup + 1))
