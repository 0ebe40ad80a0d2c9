"""Proximal policy optimisation of a language model: its arithmetic, as pure functions of tensors.

Tensors are (batch, response_len) unless said otherwise; column t holds what belongs to response token t, and
`values[:, t]` is the value of the state in which token t is chosen. A mask is boolean and True keeps. What
stands where a mask is False, NaN included, changes neither a result nor a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Hyper-parameters of a PPO run. Raises ValueError if one is outside its range.

    batch_size: prompts sampled and answered in a step.
    minibatch_size: sequences in one optimiser step; micro_batch_size: sequences in one forward pass.
    epochs: passes over a step's responses.
    max_new_tokens: length at which a response is cut off.
    temperature: of sampling and of every log-probability, so that both speak of one distribution.
    learning_rate, value_learning_rate: of the adapter and of the value head.
    gamma, lam: discount and lambda of the advantage estimates.
    clip_range: how far the ratio may leave 1 and still be pulled; value_clip_range: a value its old value.
    value_coeff: weight of the value loss beside the policy loss.
    max_grad_norm: bound on the norm of all gradients together.
    kl_coeff: price of one nat of KL to the reference, in units of the score.
    target_kl: KL to the reference (nats a sequence) towards which kl_coeff adapts; None keeps kl_coeff fixed.
    max_kl: KL to the reference (nats a sequence) above which the run ends; None never ends it.
    update_kl_limit: KL of old to new policy (nats a token) above which a step's update ends; None never.
    missing_eos_penalty: taken off the score of a response cut off at max_new_tokens.
    seed: of sampling, of the order of the prompts and of the minibatches.
    """

    batch_size: int
    minibatch_size: int
    micro_batch_size: int
    epochs: int
    max_new_tokens: int
    learning_rate: float
    kl_coeff: float
    target_kl: float | None
    max_kl: float | None
    seed: int
    temperature: float = 1.0
    value_learning_rate: float = 1e-3
    gamma: float = 1.0
    lam: float = 0.95
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coeff: float = 0.1
    max_grad_norm: float = 1.0
    update_kl_limit: float | None = 0.1
    missing_eos_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "minibatch_size", "micro_batch_size", "epochs", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("temperature", "learning_rate", "value_learning_rate", "clip_range", "value_clip_range",
                     "max_grad_norm", "target_kl", "max_kl", "update_kl_limit"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and above 0, got {value}")
        for name in ("value_coeff", "kl_coeff", "missing_eos_penalty"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not below 0, got {value}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


class ClippedLoss(NamedTuple):
    """A loss (scalar, with gradient) and the share of kept tokens whose gradient the clip took away."""

    loss: Tensor
    clip_fraction: Tensor


def response_mask(responses: Tensor, eos_token_ids: Sequence[int]) -> Tensor:
    """True up to and including the first end of sequence; by position, as padding may share its id.

    responses: (batch, response_len) token ids.
    """
    is_eos = torch.isin(responses, torch.tensor(list(eos_token_ids), device=responses.device))
    ended_before = is_eos.long().cumsum(dim=1) - is_eos.long()
    return ended_before == 0


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token, computed in fp32.

    logits: (batch, response_len, vocab); tokens: (batch, response_len) ids.
    """
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit tokens {tuple(tokens.shape)}")
    logits = logits.float()
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    logprobs: Tensor = chosen - logits.logsumexp(dim=-1)
    return logprobs


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each next-token distribution, computed in fp32: (..., vocab) to (...)."""
    terms: Tensor = torch.special.entr(logits.float().softmax(dim=-1))
    return terms.sum(dim=-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the kept entries. Raises ValueError if none is kept."""
    _require_mask(mask, values=values)
    if not mask.any():
        raise ValueError("the mask keeps nothing: there is no mean")
    return values.masked_fill(~mask, 0).sum() / mask.sum()


def masked_whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Values shifted to mean 0 and scaled to variance 1 over the kept entries; 0 elsewhere.

    The variance is the population's (divided by the count), which is defined for a single entry as well.
    """
    centred = values - masked_mean(values, mask)
    return (centred * (masked_mean(centred**2, mask) + 1e-8).rsqrt()).masked_fill(~mask, 0)


def kl_k1(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """Unbiased estimate of KL(p, q) at each token drawn from p; single tokens may lie below 0.

    logprobs: under p; other_logprobs: under q. Estimator k1 of http://joschu.net/blog/kl-approx.html
    """
    _require_same_shape(logprobs=logprobs, other_logprobs=other_logprobs)
    return logprobs - other_logprobs


def kl_k3(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """Unbiased estimate of KL(p, q) at each token drawn from p; never below 0, of lower variance near p = q.

    logprobs: under p; other_logprobs: under q. Estimator k3, r - 1 - log r with r = q / p, of
    http://joschu.net/blog/kl-approx.html
    """
    log_ratio = -kl_k1(logprobs, other_logprobs)
    return torch.expm1(log_ratio) - log_ratio


def token_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coeff: float
) -> Tensor:
    """Reward of each token: the price of its KL to the reference, plus the score on the last kept token.

    scores: (batch,). Ziegler et al. 2019 (arXiv 1909.08593), eq. 2, the KL charged where it arises.
    Raises ValueError if a row keeps nothing, since its score would vanish.
    """
    _require_mask(mask, logprobs=logprobs, ref_logprobs=ref_logprobs)
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"scores {tuple(scores.shape)} do not fit mask {tuple(mask.shape)}")
    if not mask.any(dim=1).all():
        raise ValueError("a response without a token has no place for its score")
    rewards = (-kl_coeff * kl_k1(logprobs, ref_logprobs)).masked_fill(~mask, 0)
    last = mask.shape[1] - 1 - mask.flip(1).long().argmax(dim=1)
    return rewards.scatter_add(1, last.unsqueeze(1), scores.to(rewards.dtype).unsqueeze(1))


def generalized_advantages(
    rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (Schulman et al. 2016, arXiv 1506.02438, eq. 16); 0 outside the mask.

    response_mask: True on a prefix of each row. The state after the last kept token is terminal, its value 0.
    The returns are advantages + values, the targets of the value head (TD-lambda).
    """
    _require_mask(response_mask, rewards=rewards, values=values)
    if (response_mask[:, 1:] & ~response_mask[:, :-1]).any():
        raise ValueError("the mask of a response must keep a prefix of the row")
    rewards = rewards.masked_fill(~response_mask, 0)
    values = values.masked_fill(~response_mask, 0)
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # Beyond the last kept token every term is 0, so the recursion starts afresh at each row's own end.
        advantage = delta + gamma * lam * advantage
        advantages[:, t] = advantage
        next_value = values[:, t]
    return advantages, advantages + values


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> ClippedLoss:
    """Negative clipped surrogate objective, averaged over kept tokens (arXiv 1707.06347, eq. 7)."""
    _require_mask(mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    # Masked before exp: an infinity there would turn the zero gradient of a dropped token into NaN.
    ratio = (logprobs - old_logprobs).masked_fill(~mask, 0).exp()
    advantages = advantages.masked_fill(~mask, 0)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return ClippedLoss(
        loss=masked_mean(torch.maximum(unclipped, clipped), mask),
        clip_fraction=masked_mean((clipped > unclipped).float(), mask),
    )


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> ClippedLoss:
    """Half the squared error of the values, pessimistic about moves beyond clip_range, over kept tokens.

    The larger of the errors of the value and of the value held within clip_range of the old one, as in the
    code of arXiv 1707.06347 (openai/baselines, ppo2).
    """
    _require_mask(mask, values=values, old_values=old_values, returns=returns)
    values, old_values, returns = (x.masked_fill(~mask, 0) for x in (values, old_values, returns))
    held = old_values + (values - old_values).clamp(-clip_range, clip_range)
    unclipped = (values - returns) ** 2
    clipped = (held - returns) ** 2
    return ClippedLoss(
        loss=0.5 * masked_mean(torch.maximum(unclipped, clipped), mask),
        clip_fraction=masked_mean((clipped > unclipped).float(), mask),
    )


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Share of the returns' variance that the values foretell: 1 is all; NaN if the returns do not vary."""
    _require_mask(mask, values=values, returns=returns)
    spread = returns[mask].var(correction=0).item()
    return 1 - (returns - values)[mask].var(correction=0).item() / spread if spread > 0 else math.nan


def next_kl_coeff(kl_coeff: float, kl: float, target_kl: float, gain: float = 0.1) -> float:
    """The KL price after a batch whose KL to the reference was `kl` (arXiv 1909.08593, section 2.2)."""
    error = min(max((kl - target_kl) / target_kl, -0.2), 0.2)
    return kl_coeff * (1 + gain * error)


def _require_same_shape(**tensors: Tensor) -> None:
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes differ: {shapes}")


def _require_mask(mask: Tensor, **tensors: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask is boolean, got {mask.dtype}")
    _require_same_shape(mask=mask, **tensors)
