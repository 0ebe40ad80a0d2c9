from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

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
    response_mask,
    token_logprobs,
    token_rewards,
)

NAN = math.nan
LN2 = math.log(2)
EOS = 2


def tensor(*rows):
    return torch.tensor(rows)


def keep(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_a_response_is_kept_up_to_and_including_its_first_end_of_sequence():
    responses = tensor([5, 6, EOS, EOS, EOS], [EOS, 5, 6, 7, EOS], [5, 6, 7, 8, 9], [5, 6, 7, 8, EOS])
    expected = keep([1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1])
    assert torch.equal(response_mask(responses, [EOS]), expected)


def test_whichever_end_of_sequence_comes_first_ends_a_response():
    assert torch.equal(response_mask(tensor([5, 9, EOS, 6]), [EOS, 9]), keep([1, 1, 0, 0]))


def test_token_logprobs_are_those_of_the_softmax():
    # exp(0) : exp(ln 3) = 1 : 3, so the probabilities are 1/4 and 3/4.
    logits = tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert_close(token_logprobs(logits, tensor([0, 1])), tensor([math.log(0.25), math.log(0.75)]))


def test_token_logprobs_are_fp32_also_for_bf16_logits():
    logits = torch.randn(2, 3, 50).bfloat16()
    tokens = torch.randint(50, (2, 3))
    expected = torch.distributions.Categorical(logits=logits.float()).log_prob(tokens)
    assert token_logprobs(logits, tokens).dtype == torch.float32
    assert_close(token_logprobs(logits, tokens), expected)


def test_entropy_in_nats():
    # Uniform over 4: ln 4. (1/2, 1/4, 1/4): 1/2 ln 2 + 2 * 1/4 ln 4 = 3/2 ln 2. An impossible token adds nothing.
    logits = tensor([0.0, 0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0, -math.inf])
    assert_close(entropy(logits), torch.tensor([2 * LN2, 1.5 * LN2]))


def test_masked_mean_counts_kept_entries_only():
    assert masked_mean(tensor([1.0, 2.0, NAN], [6.0, NAN, NAN]), keep([1, 1, 0], [1, 0, 0])) == 3.0


def test_a_mean_over_nothing_is_refused():
    with pytest.raises(ValueError, match="keeps nothing"):
        masked_mean(tensor([1.0]), keep([0]))


def test_whitening_shifts_and_scales_by_the_population_variance():
    # Mean 2, variance ((-1)^2 + 0 + 1^2) / 3 = 2/3, so 1 becomes sqrt(3/2).
    values, mask = tensor([1.0, 2.0], [3.0, NAN]), keep([1, 1], [1, 0])
    unit = math.sqrt(1.5)
    assert_close(masked_whiten(values, mask), tensor([-unit, 0.0], [unit, 0.0]))


def test_whitening_a_single_entry_gives_zero():
    assert torch.equal(masked_whiten(tensor([7.0, NAN]), keep([1, 0])), tensor([0.0, 0.0]))


def test_kl_estimates_at_one_token():
    # p = 1/2, q = 1/4: log p/q = ln 2; r = q/p = 1/2, so r - 1 - ln r = -1/2 + ln 2.
    p, q = tensor([math.log(0.5)]), tensor([math.log(0.25)])
    assert_close(kl_k1(p, q), tensor([LN2]))
    assert_close(kl_k3(p, q), tensor([LN2 - 0.5]))


def test_both_kl_estimates_have_the_kl_as_their_expectation():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    exact = (p * (p / q).log()).sum()
    assert_close((p * kl_k1(p.log(), q.log())).sum(), exact)
    assert_close((p * kl_k3(p.log(), q.log())).sum(), exact)


def test_k3_is_never_negative_and_exactly_zero_for_equal_policies():
    p, q = torch.randn(1000), torch.randn(1000)
    assert (kl_k3(p, q) >= 0).all()
    assert torch.equal(kl_k3(p, p), torch.zeros(1000))


def test_rewards_charge_the_kl_per_token_and_add_the_score_to_the_last_one():
    # -0.1 * (logprob - reference): -0.1 * 2 = -0.2, -0.1 * -1 = 0.1. The scores join tokens 3 and 2.
    rewards = token_rewards(
        scores=torch.tensor([1.0, -2.0]),
        logprobs=tensor([-1.0, -1.0, -3.0], [-2.0, -1.0, NAN]),
        ref_logprobs=tensor([-3.0, -1.0, -2.0], [-2.0, -3.0, NAN]),
        mask=keep([1, 1, 1], [1, 1, 0]),
        kl_coeff=0.1,
    )
    assert_close(rewards, tensor([-0.2, 0.0, 1.1], [0.0, -2.2, 0.0]))


def test_a_response_without_a_token_is_refused():
    zeros = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="no place for its score"):
        token_rewards(torch.ones(1), zeros, zeros, keep([0, 0]), 0.1)


def test_advantages_and_returns():
    # gamma 0.9, lambda 0.8, gamma * lambda = 0.72.
    # Row 1: deltas 1 + 0.9*1 - 0.5 = 1.4; 2 + 0.9*1.5 - 1 = 2.35; 3 - 1.5 = 1.5.
    #   advantages 1.5; 2.35 + 0.72*1.5 = 3.43; 1.4 + 0.72*3.43 = 3.8696.
    # Row 2 ends after two tokens: deltas 0.9*0.4 - 0.2 = 0.16; 1 - 0.4 = 0.6; advantage 0.16 + 0.72*0.6 = 0.592.
    advantages, returns = generalized_advantages(
        rewards=tensor([1.0, 2.0, 3.0], [0.0, 1.0, NAN]),
        values=tensor([0.5, 1.0, 1.5], [0.2, 0.4, NAN]),
        response_mask=keep([1, 1, 1], [1, 1, 0]),
        gamma=0.9,
        lam=0.8,
    )
    assert_close(advantages, tensor([3.8696, 3.43, 1.5], [0.592, 0.6, 0.0]))
    assert_close(returns, tensor([4.3696, 4.43, 3.0], [0.792, 1.0, 0.0]))


def test_with_lambda_1_returns_are_the_rewards_to_come_and_with_0_one_step_ahead():
    torch.manual_seed(0)
    rewards, values, mask = torch.randn(3, 5), torch.randn(3, 5), torch.ones(3, 5, dtype=torch.bool)
    to_come = rewards.flip(1).cumsum(1).flip(1)
    assert_close(generalized_advantages(rewards, values, mask, 1.0, 1.0)[1], to_come)
    one_step = rewards + 0.9 * torch.cat([values[:, 1:], torch.zeros(3, 1)], dim=1)
    assert_close(generalized_advantages(rewards, values, mask, 0.9, 0.0)[1], one_step)


def test_a_mask_with_a_hole_has_no_advantages():
    zeros = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="prefix"):
        generalized_advantages(zeros, zeros, keep([1, 0, 1]), 1.0, 1.0)


def test_policy_loss_and_its_gradient():
    # Ratios 1.5, 0.5, 0.5, 1.5 under clip range 0.2, advantages 1, 1, -2, -2: -advantage * ratio against clipped:
    #   -1.5 and -1.2 -> -1.2 (clipped); -0.5 and -0.8 -> -0.5; 1.0 and 1.6 -> 1.6 (clipped); 3.0 and 2.4 -> 3.0.
    # Mean (-1.2 - 0.5 + 1.6 + 3.0) / 4 = 0.725. Gradient -advantage * ratio / 4 where not clipped.
    old = tensor([-1.0, -1.0, -1.0, -1.0, NAN])
    logprobs = old + tensor([1.5, 0.5, 0.5, 1.5, 1.0]).log()
    logprobs.requires_grad_()
    loss, clip_fraction = clipped_policy_loss(
        logprobs, old, tensor([1.0, 1.0, -2.0, -2.0, NAN]), keep([1, 1, 1, 1, 0]), clip_range=0.2
    )
    loss.backward()
    assert_close(loss, torch.tensor(0.725))
    assert clip_fraction == 0.5
    assert_close(logprobs.grad, tensor([0.0, -0.125, 0.0, 0.75, 0.0]))


def test_value_loss_and_its_gradient():
    # Clip range 0.2 around 0.5. Value 1.0 is held at 0.7: errors against 2: 1.0 and 1.69 -> 1.69 (clipped).
    # Value 0.5: 0.25 either way. Value 0.0 held at 0.3, against 1: 1.0 and 0.49 -> 1.0.
    # Half of the mean: (1.69 + 0.25 + 1.0) / 3 / 2 = 0.49. Gradient (value - return) / 3 where not clipped; where
    # both errors are equal the two branches share it and agree.
    values = tensor([1.0, 0.5, 0.0, NAN]).requires_grad_()
    loss, clip_fraction = clipped_value_loss(
        values, tensor([0.5, 0.5, 0.5, NAN]), tensor([2.0, 1.0, 1.0, NAN]), keep([1, 1, 1, 0]), clip_range=0.2
    )
    loss.backward()
    assert_close(loss, torch.tensor(0.49))
    assert_close(clip_fraction, torch.tensor(1 / 3))
    assert_close(values.grad, tensor([0.0, -0.5 / 3, -1.0 / 3, 0.0]))


def test_explained_variance():
    # Returns 0, 2, 4: variance 8/3. Residuals 0, 1, 0: mean 1/3, variance 1/3 - 1/9 = 2/9. 1 - (2/9) / (8/3) = 11/12.
    returns, mask = tensor([0.0, 2.0, 4.0, NAN]), keep([1, 1, 1, 0])
    assert explained_variance(tensor([0.0, 1.0, 4.0, NAN]), returns, mask) == pytest.approx(11 / 12)
    assert explained_variance(tensor([7.0, 7.0, 7.0, NAN]), returns, mask) == pytest.approx(0)
    assert math.isnan(explained_variance(returns, tensor([1.0, 1.0, 1.0, 5.0]), mask))


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(6.0, 1.0), (6.6, 1.01), (12.0, 1.02), (600.0, 1.02), (5.4, 0.99), (0.0, 0.98)],
    ids=["on target", "10 % over", "100 % over", "far over", "10 % under", "none"],
)
def test_the_kl_price_follows_the_kl_in_proportion_up_to_a_bound(kl, factor):
    assert next_kl_coeff(0.05, kl, target_kl=6.0) == pytest.approx(0.05 * factor)


def test_what_the_mask_drops_changes_no_bit_of_a_loss_or_gradient():
    generator = torch.Generator().manual_seed(0)
    mask = keep([1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1])
    inputs = [torch.randn(3, 5, generator=generator) for _ in range(4)]

    def losses(filler):
        logprobs, old, advantages, returns = (x.masked_fill(~mask, filler).requires_grad_() for x in inputs)
        policy = clipped_policy_loss(logprobs, old, masked_whiten(advantages, mask), mask, 0.2)
        value = clipped_value_loss(logprobs, old, returns, mask, 0.2)
        (policy.loss + value.loss).backward()
        gradient = logprobs.grad
        return policy.loss, value.loss, policy.clip_fraction, value.clip_fraction, gradient

    for filler in (1e9, -math.inf, NAN):
        for plain, filled in zip(losses(0.0), losses(filler), strict=True):
            assert torch.equal(plain, filled)


@pytest.mark.parametrize(
    "call",
    [
        lambda _, b, m: masked_mean(b, m),
        lambda a, b, m: masked_whiten(b, m),
        lambda a, b, _: kl_k1(b, a),
        lambda a, b, m: kl_k3(a, b),
        lambda a, b, m: token_logprobs(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long)),
        lambda a, b, m: token_rewards(torch.zeros(2), a, b, m, 0.1),
        lambda a, b, m: token_rewards(torch.zeros(3), a, a, m, 0.1),
        lambda a, b, m: generalized_advantages(a, b, m, 1.0, 1.0),
        lambda a, b, m: clipped_policy_loss(a, a, b, m, 0.2),
        lambda a, b, m: clipped_value_loss(a, b, a, m, 0.2),
        explained_variance,
    ],
)
def test_shapes_that_differ_are_refused_even_if_they_would_broadcast(call):
    with pytest.raises(ValueError, match=r"shape|fit"):
        call(torch.zeros(2, 3), torch.zeros(1, 3), torch.ones(2, 3, dtype=torch.bool))


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(ValueError, match="boolean"):
        masked_mean(torch.ones(2), torch.ones(2))


VALID = {
    "batch_size": 16,
    "minibatch_size": 8,
    "micro_batch_size": 4,
    "epochs": 2,
    "max_new_tokens": 64,
    "learning_rate": 1e-4,
    "kl_coeff": 0.05,
    "target_kl": 6.0,
    "max_kl": 20.0,
    "seed": 0,
}


def test_hyper_parameters_within_their_ranges_are_taken():
    assert PPOConfig(**VALID).target_kl == 6.0
    assert PPOConfig(**VALID | {"target_kl": None, "max_kl": None}).max_kl is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"micro_batch_size": 0},
        {"temperature": 0.0},
        {"learning_rate": math.inf},
        {"max_kl": -1.0},
        {"target_kl": 0.0},
        {"kl_coeff": -0.1},
        {"missing_eos_penalty": NAN},
        {"gamma": 1.1},
        {"lam": -0.1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_hyper_parameter_outside_its_range_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PPOConfig(**VALID | wrong)
