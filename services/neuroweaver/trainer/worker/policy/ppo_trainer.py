"""PPO over one base model: rollout, scoring, update, and the state from which a run goes on.

The model stays in eval mode, and responses are scored in the very micro-batches that then update the policy:
so a step's first ratios are exactly 1, and the KL of equal policy and reference exactly 0, in bf16 as well.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from neuroweaver.trainer.worker.models.generation import text_of
from neuroweaver.trainer.worker.policy.actor import Policy
from neuroweaver.trainer.worker.policy.ppo_losses import (
    PPOConfig,
    clipped_policy_loss,
    clipped_value_loss,
    entropy,
    explained_variance,
    generalized_advantages,
    kl_k1,
    kl_k3,
    masked_mean,
    masked_whiten,
    next_kl_coeff,
    token_logprobs,
    token_rewards,
)
from neuroweaver.trainer.worker.policy.rollout import Minibatch, Prompt, Rollout, partition
from neuroweaver.trainer.worker.process.monitor import SILENT, Monitor
from neuroweaver.trainer.worker.process.optimizer import adamw, clipped_step
from neuroweaver.trainer.worker.process.reproducibility import seeded

# Prompt texts and response texts to one score each, (batch,); NaN or None says that a score is missing.
Reward = Callable[[list[str], list[str]], Tensor | Sequence[float | None]]


@dataclass(frozen=True, kw_only=True)
class PPOStep:
    """What one step measured; NaN where the step ended before there was anything to measure.

    score_mean: of the reward function; reward_mean: after shaping, less the price of the KL.
    kl_k1, kl_k3: of policy to reference, nats a sequence, by these estimators. The controller and max_kl go
        by k1, as in the papers: single tokens can make k3 enormous. What is shown as `kl` is k3, never below
        0.
    kl_coeff: the price this step charged.
    policy_loss, value_loss, clip_fraction, grad_norm: means over the update's minibatches.
    ratio_first: mean ratio of new to old probability on the first minibatch; 1 unless something is broken.
    explained_variance: of the returns by the values, before the update.
    eos_fraction: of the responses that were scored, those that ended by themselves.
    missing_scores: responses dropped because the reward function gave no score.
    stopped_early: the update ended at update_kl_limit.
    stop_reason: why the run must end; empty if it goes on.
    """

    step: int
    score_mean: float
    reward_mean: float
    kl_k1: float
    kl_k3: float
    kl_coeff: float
    entropy: float
    explained_variance: float
    response_tokens: int
    eos_fraction: float
    missing_scores: int
    rollout_s: float
    reward_s: float
    scoring_s: float
    update_s: float = 0.0
    policy_loss: float = math.nan
    value_loss: float = math.nan
    clip_fraction: float = math.nan
    grad_norm: float = math.nan
    ratio_first: float = math.nan
    stopped_early: bool = False
    stop_reason: str = ""

    def metrics(self) -> dict[str, float]:
        """The numbers for a Monitor, with `reward`, `loss` and `kl`; what was not measured is left out."""
        numbers = {**asdict(self), "reward": self.reward_mean, "loss": self.policy_loss, "kl": self.kl_k3}
        del numbers["step"], numbers["stop_reason"]
        return {name: float(number) for name, number in numbers.items() if math.isfinite(number)}


@dataclass(frozen=True)
class Scored:
    """What policy, value head and reference say of a rollout before the update; all (batch, response_len)."""

    logprobs: Tensor
    values: Tensor
    entropies: Tensor
    ref_logprobs: Tensor


@dataclass(frozen=True)
class Targets:
    """What an update starts from and pulls towards; all (batch, response_len)."""

    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True)
class MinibatchLosses:
    """Means over a minibatch's response tokens; update_kl: of old to new policy, nats a token, by k3."""

    policy_loss: float
    value_loss: float
    clip_fraction: float
    ratio: float
    update_kl: float


class PPOTrainer:
    """Trains the adapter "default" of a PEFT model towards the scores of a reward function.

    model: see `Policy`, also for the ValueErrors. tokenizer: decodes responses for the reward function.
    """

    def __init__(self, model: Any, tokenizer: Any, reward: Reward, config: PPOConfig) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.reward = reward
        self.policy = Policy(model, tokenizer, config.temperature)
        self.device = self.policy.device
        self.optimizer = adamw(
            self.policy.parameters.values(),
            self.policy.value_head.parameters(),
            learning_rate=config.learning_rate,
            head_learning_rate=config.value_learning_rate,
        )
        self.kl_coeff = config.kl_coeff
        self.steps_done = 0
        self.tokens = 0
        self.stop_reason = ""
        self._within_max_kl: dict[str, Tensor] | None = None

    def train(self, prompts: Sequence[Prompt], steps: int, monitor: Monitor = SILENT) -> Iterator[PPOStep]:
        """Each step, once the trainer's state includes it, until `steps` are done or `stop_reason` is set.

        steps: those before a resume included.
        """
        while self.steps_done < steps and not self.stop_reason:
            done = self.step(self.next_prompts(prompts), monitor)
            monitor.report(step=done.step, total_steps=steps, tokens=self.tokens, metrics=done.metrics())
            yield done

    def next_prompts(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The next step's prompts: each epoch in a new order, known from seed and steps done alone."""
        if not prompts:
            raise ValueError("there are no prompts to train on")
        start = self.steps_done * self.config.batch_size
        places = [divmod(place, len(prompts)) for place in range(start, start + self.config.batch_size)]
        orders = {epoch: self._shuffled(len(prompts), f"prompts/{epoch}") for epoch, _ in places}
        return [prompts[orders[epoch][index]] for epoch, index in places]

    def step(self, prompts: Sequence[Prompt], monitor: Monitor = SILENT) -> PPOStep:
        """Sample a response to each prompt, score it, and update the policy from it.

        Raises ValueError if the reward function gives anything but one finite or missing score a response, or
        no score at all.
        """
        monitor.check()
        watch = _Stopwatch(self.device)
        with seeded(self._random(f"{self.steps_done}/rollout").getrandbits(63)):
            rollout = self.policy.sample(prompts, self.config.max_new_tokens)
        rollout_s = watch.lap()
        scores = self.scores(rollout)
        kept = ~scores.isnan()
        rollout, scores = rollout.keeping(kept), scores[kept]
        reward_s = watch.lap()

        minibatches = self.partition(rollout)
        scored = self.score(rollout, minibatches, monitor)
        rewards = token_rewards(
            scores - self.config.missing_eos_penalty * (~rollout.ended).float(),
            scored.logprobs,
            scored.ref_logprobs,
            rollout.mask,
            self.kl_coeff,
        )
        advantages, returns = self.advantages(rollout, rewards, scored.values)
        done = PPOStep(
            step=self.steps_done + 1,
            score_mean=scores.mean().item(),
            reward_mean=_per_sequence(rewards, rollout.mask),
            kl_k1=_per_sequence(kl_k1(scored.logprobs, scored.ref_logprobs), rollout.mask),
            kl_k3=_per_sequence(kl_k3(scored.logprobs, scored.ref_logprobs), rollout.mask),
            kl_coeff=self.kl_coeff,
            entropy=masked_mean(scored.entropies, rollout.mask).item(),
            explained_variance=explained_variance(scored.values, returns, rollout.mask),
            response_tokens=int(rollout.mask.sum()),
            eos_fraction=rollout.ended.float().mean().item(),
            missing_scores=len(prompts) - len(rollout.prompts),
            rollout_s=rollout_s,
            reward_s=reward_s,
            scoring_s=watch.lap(),
        )
        if self._left_max_kl(done.kl_k1):
            done = replace(done, stop_reason=self.stop_reason)
        else:
            targets = Targets(
                scored.logprobs, scored.values, masked_whiten(advantages, rollout.mask), returns
            )
            done = self._update(minibatches, targets, done, monitor)
            done = replace(done, update_s=watch.lap())
            if self.config.target_kl is not None:
                self.kl_coeff = next_kl_coeff(self.kl_coeff, done.kl_k1, self.config.target_kl)
        self.steps_done += 1
        self.tokens += done.response_tokens
        return done

    def advantages(self, rollout: Rollout, rewards: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages, before whitening, and the returns that the value head learns.

        All (batch, response_len). An algorithm differs from its siblings by this and by `next_prompts`.
        """
        return generalized_advantages(rewards, values, rollout.mask, self.config.gamma, self.config.lam)

    def scores(self, rollout: Rollout) -> Tensor:
        """The reward function's scores, (batch,), NaN where one is missing."""
        kept = [row[keep].tolist() for row, keep in zip(rollout.responses, rollout.mask, strict=True)]
        texts = [text_of(self.tokenizer, tokens, self.policy.eos_token_ids) for tokens in kept]
        with torch.no_grad():
            given = self.reward([prompt.text for prompt in rollout.prompts], texts)
        if not isinstance(given, Tensor):
            given = torch.tensor([math.nan if score is None else float(score) for score in given])
        scores = given.to(self.device, torch.float32)
        if scores.shape != (len(texts),):
            raise ValueError(f"{len(texts)} responses need one score each, got shape {tuple(scores.shape)}")
        if scores.isinf().any():
            raise ValueError("the reward function gave an infinite score")
        if scores.isnan().all():
            raise ValueError("the reward function gave no score for any response of the batch")
        return scores

    def partition(self, rollout: Rollout) -> list[Minibatch]:
        """The rollout, shuffled, in the one partition that scoring and every epoch of the update use."""
        return partition(
            rollout,
            self._shuffled(len(rollout.prompts), f"{self.steps_done}/partition"),
            self.config.minibatch_size,
            self.config.micro_batch_size,
            self.policy.pad_token_id,
        )

    def score(self, rollout: Rollout, minibatches: list[Minibatch], monitor: Monitor = SILENT) -> Scored:
        """What policy, value head and reference say of a rollout; 0 outside its mask."""
        micro_batches = [micro for minibatch in minibatches for micro in minibatch]
        scored = Scored(*(torch.zeros(rollout.mask.shape, device=self.device) for _ in range(4)))
        for micro in micro_batches:
            monitor.check()
            with self.policy.scoring():
                logits, values = (numbers.detach() for numbers in self.policy.forward(micro))
            micro.place(scored.logprobs, token_logprobs(logits, micro.responses))
            micro.place(scored.values, values)
            micro.place(scored.entropies, entropy(logits))
        with self.policy.reference():
            for micro in micro_batches:
                monitor.check()
                with self.policy.scoring():
                    logits = self.policy.forward(micro)[0].detach()
                micro.place(scored.ref_logprobs, token_logprobs(logits, micro.responses))
        return scored

    def accumulate_gradients(self, minibatch: Minibatch, targets: Targets) -> MinibatchLosses:
        """Add the gradients of a minibatch's loss; a micro-batch weighs by its share of the tokens."""
        tokens = sum(int(micro.mask.sum()) for micro in minibatch)
        totals = torch.zeros(5, device=self.device)
        for micro in minibatch:
            old_logprobs = micro.rows_of(targets.old_logprobs)
            with self.policy.checkpointing():
                logits, values = self.policy.forward(micro)
            logprobs = token_logprobs(logits, micro.responses)
            policy = clipped_policy_loss(
                logprobs, old_logprobs, micro.rows_of(targets.advantages), micro.mask, self.config.clip_range
            )
            value = clipped_value_loss(
                values,
                micro.rows_of(targets.old_values),
                micro.rows_of(targets.returns),
                micro.mask,
                self.config.value_clip_range,
            )
            count = micro.mask.sum()
            loss = (policy.loss + self.config.value_coeff * value.loss) * (count / tokens)
            torch.autograd.backward(loss)
            with torch.no_grad():
                means = torch.stack([policy.loss, value.loss, policy.clip_fraction])
                ratio = (logprobs - old_logprobs)[micro.mask].exp().sum()
                update_kl = kl_k3(old_logprobs, logprobs)[micro.mask].sum()
                totals += torch.cat([means * count, torch.stack([ratio, update_kl])])
        return MinibatchLosses(*(totals / tokens).tolist())

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, besides base model, reference, reward function and prompts.

        Tensors are shared with the trainer, as in torch: save the state before the next step. There is no
        generator's state in it, since every random draw is seeded by the seed and the steps done.
        """
        return {
            "adapter": self.policy.weights(),
            "adapter_within_max_kl": self._within_max_kl,
            "value_head": self.policy.value_head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "kl_coeff": self.kl_coeff,
            "steps_done": self.steps_done,
            "tokens": self.tokens,
            "stop_reason": self.stop_reason,
            "seed": self.config.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises ValueError if it is of another seed or another adapter."""
        if state["seed"] != self.config.seed:
            raise ValueError(f"the state is of seed {state['seed']}, this trainer of seed {self.config.seed}")
        self.policy.set_weights(state["adapter"])
        self.policy.value_head.load_state_dict(state["value_head"])
        self.optimizer.load_state_dict(state["optimizer"])
        within = state["adapter_within_max_kl"]
        self._within_max_kl = within and {name: weight.to(self.device) for name, weight in within.items()}
        self.kl_coeff = state["kl_coeff"]
        self.steps_done = state["steps_done"]
        self.tokens = state["tokens"]
        self.stop_reason = state["stop_reason"]

    def _update(
        self, minibatches: list[Minibatch], targets: Targets, measured: PPOStep, monitor: Monitor
    ) -> PPOStep:
        """Optimise for all epochs or up to update_kl_limit; returns `measured` with what was seen."""
        seen: list[MinibatchLosses] = []
        norms: list[float] = []
        order = [
            index
            for epoch in range(self.config.epochs)
            for index in self._shuffled(len(minibatches), f"{self.steps_done}/epoch/{epoch}")
        ]
        stopped_early = False
        for index in order:
            monitor.check()
            self.optimizer.zero_grad()
            seen.append(self.accumulate_gradients(minibatches[index], targets))
            limit = self.config.update_kl_limit
            stopped_early = limit is not None and seen[-1].update_kl > limit
            if stopped_early:
                break
            norms.append(self.optimizer_step(seen[-1]))
        self.optimizer.zero_grad()
        return replace(
            measured,
            policy_loss=_mean([losses.policy_loss for losses in seen]),
            value_loss=_mean([losses.value_loss for losses in seen]),
            clip_fraction=_mean([losses.clip_fraction for losses in seen]),
            grad_norm=_mean(norms),
            ratio_first=seen[0].ratio,
            stopped_early=stopped_early,
        )

    def optimizer_step(self, losses: MinibatchLosses) -> float:
        """Clip the gradients and step; returns their norm.

        Raises TrainingDiverged, and RuntimeError if no gradient reached the adapter.
        """
        if all(parameter.grad is None for parameter in self.policy.parameters.values()):
            raise RuntimeError("no gradient reached the adapter")
        return clipped_step(
            self.optimizer,
            self.config.max_grad_norm,
            loss=losses.policy_loss + losses.value_loss,
            at=f"PPO step {self.steps_done + 1}",
        )

    def _left_max_kl(self, kl: float) -> bool:
        """Whether the policy is too far from the reference; if so, put back the last one that was not."""
        if self.config.max_kl is None:
            return False
        if kl <= self.config.max_kl:
            self._within_max_kl = {name: weight.clone() for name, weight in self.policy.weights().items()}
            return False
        self.stop_reason = (
            f"KL to the reference is estimated at {kl:.1f} nats a sequence at step {self.steps_done + 1}, "
            f"above max_kl {self.config.max_kl:g}"
        )
        if self._within_max_kl is not None:
            self.policy.set_weights(self._within_max_kl)
            self.stop_reason += "; the adapter is the last one measured within it"
        return True

    def _shuffled(self, count: int, purpose: str) -> list[int]:
        return self._random(purpose).sample(range(count), count)

    def _random(self, purpose: str) -> random.Random:
        return random.Random(f"{self.config.seed}/{purpose}")


class _Stopwatch:
    """Seconds between laps; waits for the device, whose work may still be queued."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.since = time.perf_counter()

    def lap(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        since, self.since = self.since, time.perf_counter()
        return self.since - since


def _per_sequence(numbers: Tensor, mask: Tensor) -> float:
    return numbers.masked_fill(~mask, 0).sum(dim=1).mean().item()


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else math.nan
