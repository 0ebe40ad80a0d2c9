from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
)

from neuroweaver.trainer.worker.policy.actor import Policy
from neuroweaver.trainer.worker.policy.ppo_losses import (
    PPOConfig,
    clipped_policy_loss,
    clipped_value_loss,
    kl_k3,
    masked_mean,
    response_mask,
    token_logprobs,
)
from neuroweaver.trainer.worker.policy.ppo_trainer import PPOTrainer, Targets
from neuroweaver.trainer.worker.policy.rollout import Prompt, Rollout, partition
from neuroweaver.trainer.worker.process.monitor import Stopped
from neuroweaver.trainer.worker.process.optimizer import TrainingDiverged
from trainer.recorder import Recorder
from trainer.tiny import tiny_llama

CONFIG = PPOConfig(
    batch_size=8,
    minibatch_size=4,
    micro_batch_size=2,
    epochs=2,
    max_new_tokens=8,
    learning_rate=1e-2,
    value_learning_rate=1e-2,
    kl_coeff=0.05,
    seed=0,
    target_kl=None,
    max_kl=None,
    update_kl_limit=None,
)
EOS = 2
SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}
LORA = LoraConfig(r=8, lora_dropout=0.5, target_modules="all-linear")
BOTH_REFERENCES = pytest.mark.parametrize("reference", [True, False], ids=["reference adapter", "no adapter"])
BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


class IdTokenizer:
    """Decodes to the ids themselves, so that a reward function can be about tokens."""

    def __init__(self, eos_token_id):
        self.eos_token_id = self.pad_token_id = eos_token_id
        self.chat_template = self.unk_token_id = self.bos_token = self.eos_token = None
        self.added_tokens_decoder, self.all_special_tokens = {}, []
        self.is_fast, self.backend_tokenizer = True, Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>"))

    def convert_tokens_to_ids(self, tokens):
        return [int(token) for token in tokens]

    def decode(self, ids, *, skip_special_tokens):
        assert skip_special_tokens
        return " ".join(str(token) for token in ids if token != self.eos_token_id)


def share_of_low_ids(prompts, responses):
    """Of each response's tokens, those with an id below 160, half of the vocabulary."""
    ids = [[int(token) for token in response.split()] for response in responses]
    return torch.tensor([sum(token < 160 for token in tokens) / max(1, len(tokens)) for tokens in ids])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prompts(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["oil", "The brakes squeal", "part number", "a lease or a loan of the car?", "discs and pads"]
    return [Prompt(text, tuple(tokenizer(text).input_ids)) for text in texts]


@pytest.fixture
def make_model(folder):
    def make(dtype=torch.float32, source=folder, *, reference=True, often_ends=True, seed=0, **options):
        """A policy unlike its base model, whose token distributions are neither flat nor all the same."""
        base = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
        torch.manual_seed(seed)
        head = torch.randn(base.lm_head.weight.shape) * 0.3
        if often_ends:
            head[base.config.eos_token_id] *= 3
        base.lm_head.weight = torch.nn.Parameter(head.to(dtype))
        model = get_peft_model(base, copy.deepcopy(LORA))
        if reference:
            model.add_adapter("reference", copy.deepcopy(LORA))
            model.set_adapter("default")
            weights = dict(model.named_parameters())
            for name, weight in weights.items():
                if ".default." in name:
                    torch.nn.init.normal_(weight, std=0.1)
                    weights[name.replace(".default.", ".reference.")].data.copy_(weight)
        return model

    return make


@pytest.fixture
def make_trainer(make_model):
    def make(config=CONFIG, reward=share_of_low_ids, model=None, **model_options):
        model = model or make_model(**model_options)
        return PPOTrainer(model, IdTokenizer(model.config.eos_token_id), reward, config)

    return make


def scored_targets(trainer, prompts):
    """One minibatch whose responses end after 8, 4, 1, 8 and 6 tokens, and targets far from what the model says."""
    eos = trainer.policy.eos_token_ids
    responses = torch.randint(3, 300, (5, 8), generator=torch.Generator().manual_seed(0))
    for row, end in ((1, 3), (2, 0), (4, 5)):
        responses[row, end:] = eos[0]
    rollout = Rollout(
        tuple(prompts), responses, response_mask(responses, eos), (responses == eos[0]).any(dim=1)
    )
    order = range(len(prompts))
    micro_size = trainer.config.micro_batch_size
    [minibatch] = partition(rollout, order, len(prompts), micro_size, trainer.policy.pad_token_id)
    scored = trainer.score(rollout, [minibatch])
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(rollout.mask.shape, generator=generator) for _ in range(3)]
    targets = Targets(scored.logprobs + 0.1 * noise[0], scored.values, noise[1], noise[2])
    return rollout, minibatch, targets


def gradients(trainer, minibatch, targets):
    trainer.optimizer.zero_grad()
    losses = trainer.accumulate_gradients(minibatch, targets)
    parameters = [*trainer.policy.parameters.values(), *trainer.policy.value_head.parameters()]
    return losses, [parameter.grad.clone() for parameter in parameters]


def without_seconds(step):
    return replace(step, rollout_s=0.0, reward_s=0.0, scoring_s=0.0, update_s=0.0)


# Rollout


def test_responses_are_drawn_from_the_policy_at_its_temperature(make_model, prompts):
    # The expectation of a sampled token's log-probability is minus the entropy; four standard errors around it.
    model = make_model(often_ends=False)
    policy = Policy(model, IdTokenizer(model.config.eos_token_id), temperature=0.7)
    torch.manual_seed(0)
    rollout = policy.sample([prompts[1]] * 4000, max_new_tokens=1)
    with torch.no_grad():
        logits = model(torch.tensor([prompts[1].input_ids])).logits[0, -1]
    distribution = torch.distributions.Categorical(logits=logits / 0.7)
    logprobs = distribution.log_prob(rollout.responses[:, 0])
    assert abs(logprobs.mean() + distribution.entropy()) < 4 * logprobs.std() / math.sqrt(4000)
    assert len(Counter(rollout.responses[:, 0].tolist())) > 50  # transformers' own default keeps the top 50


def test_generation_settings_shipped_with_the_model_do_not_touch_the_sampling(make_model, prompts):
    model = make_model()
    policy = Policy(model, IdTokenizer(model.config.eos_token_id), temperature=1.0)
    torch.manual_seed(0)
    plain = policy.sample(prompts, max_new_tokens=8)
    shipped = model.get_base_model().generation_config
    shipped.update(
        repetition_penalty=5.0, top_k=1, temperature=0.1, min_p=0.9, suppress_tokens=list(range(200))
    )
    torch.manual_seed(0)
    again = policy.sample(prompts, max_new_tokens=8)
    assert torch.equal(plain.responses, again.responses)
    assert model.get_base_model().generation_config is shipped


def test_a_prompt_that_leaves_no_room_for_its_response_is_refused(make_trainer):
    with pytest.raises(ValueError, match="512 positions"):
        make_trainer().step([Prompt("", (5,) * 505)])


def test_an_empty_prompt_is_refused(make_trainer):
    with pytest.raises(ValueError, match="at least one token"):
        make_trainer().step([Prompt("", ())])


def test_responses_end_where_they_end(make_trainer, prompts):
    trainer = make_trainer()
    rollout = trainer.policy.sample(prompts * 8, max_new_tokens=8)
    eos = trainer.policy.eos_token_ids[0]
    for response, mask, ended in zip(rollout.responses.tolist(), rollout.mask, rollout.ended, strict=True):
        assert ended == (eos in response)
        assert mask.sum() == (response.index(eos) + 1 if ended else 8)
    assert 0 < rollout.ended.sum() < 40


def test_each_epoch_shows_every_prompt_once_in_an_order_of_its_own(make_trainer, prompts):
    trainer = make_trainer(replace(CONFIG, batch_size=10))
    shown = trainer.next_prompts(prompts)
    assert Counter(shown[:5]) == Counter(shown[5:]) == Counter(prompts)
    assert shown[:5] != shown[5:]
    trainer.steps_done = 1
    assert trainer.next_prompts(prompts) != shown


# Scoring


def assert_padded_scoring_equals_each_sequence_alone(trainer, prompts):
    rollout, minibatch, _ = scored_targets(trainer, prompts)
    torch.nn.init.normal_(trainer.policy.value_head.weight)
    scored = trainer.score(rollout, [minibatch])
    assert rollout.mask.sum(dim=1).tolist() == [8, 4, 1, 8, 6]
    assert len({len(prompt.input_ids) for prompt in prompts}) > 1
    for row, prompt in enumerate(prompts):
        response = rollout.responses[row][rollout.mask[row]]
        length = len(response)
        sequence = torch.cat([torch.tensor(prompt.input_ids), response])[None]
        with torch.no_grad():
            output = trainer.policy.base(sequence, output_hidden_states=True)
            values = trainer.policy.value_head(output.hidden_states[-1][0, -length - 1 : -1]).squeeze(-1)
        logits = output.logits[0, -length - 1 : -1] / trainer.config.temperature
        distribution = torch.distributions.Categorical(logits=logits)
        assert_close(scored.logprobs[row, :length], distribution.log_prob(response))
        assert_close(scored.entropies[row, :length], distribution.entropy())
        assert_close(scored.values[row, :length], values)
        assert not scored.logprobs[row, length:].any()


def test_padded_scoring_equals_each_sequence_alone_without_padding(make_trainer, prompts):
    trainer = make_trainer(replace(CONFIG, temperature=0.7, micro_batch_size=5))
    assert_padded_scoring_equals_each_sequence_alone(trainer, prompts)


@pytest.mark.parametrize(
    "shaped",
    [
        Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0),
        CohereConfig(**SMALL, logit_scale=0.25),
        GraniteConfig(**SMALL, logits_scaling=4.0),
    ],
    ids=["capped", "scaled", "divided"],
)
def test_policy_and_reference_speak_of_the_models_own_logits(make_trainer, prompts, shaped, tmp_path):
    AutoModelForCausalLM.from_config(shaped).save_pretrained(tmp_path)
    trainer = make_trainer(replace(CONFIG, temperature=0.7, micro_batch_size=5), source=tmp_path)
    plain = trainer.policy.head(trainer.policy.base.model(torch.arange(8)[None]).last_hidden_state)
    assert not torch.allclose(trainer.policy.base(torch.arange(8)[None]).logits, plain)

    assert_padded_scoring_equals_each_sequence_alone(trainer, prompts)
    assert [step.ratio_first for step in trainer.train(prompts, steps=2)] == [1.0, 1.0]


@BOTH_DTYPES
@BOTH_REFERENCES
def test_the_first_ratios_are_exactly_1_and_the_first_kl_exactly_0(make_trainer, prompts, dtype, reference):
    step = make_trainer(dtype=dtype, reference=reference).step(prompts)
    assert (step.ratio_first, step.kl_k1, step.kl_k3) == (1.0, 0.0, 0.0)


@BOTH_DTYPES
def test_later_steps_start_at_ratio_1_as_well(make_trainer, prompts, dtype):
    steps = list(make_trainer(dtype=dtype).train(prompts, steps=3))
    assert [step.ratio_first for step in steps] == [1.0, 1.0, 1.0]
    assert steps[-1].kl_k3 > 0


@BOTH_REFERENCES
def test_training_moves_the_policy_and_no_bit_of_the_reference(make_trainer, prompts, reference):
    trainer = make_trainer(reference=reference)
    rollout, minibatch, _ = scored_targets(trainer, prompts)
    before = trainer.score(rollout, [minibatch])
    frozen = {
        name: weight.clone()
        for name, weight in trainer.policy.model.named_parameters()
        if name not in trainer.policy.parameters
    }
    list(trainer.train(prompts, steps=3))
    after = trainer.score(rollout, [minibatch])
    assert torch.equal(before.ref_logprobs, after.ref_logprobs)
    assert not torch.equal(before.logprobs, after.logprobs)
    now = dict(trainer.policy.model.named_parameters())
    assert all(torch.equal(weight, now[name]) for name, weight in frozen.items())


def test_the_policy_is_active_and_alone_trainable_after_the_reference_was_asked(make_trainer):
    trainer = make_trainer()
    with pytest.raises(KeyError), trainer.policy.reference():
        raise KeyError
    assert trainer.policy.model.active_adapter == "default"
    trainable = {name for name, weight in trainer.policy.model.named_parameters() if weight.requires_grad}
    assert trainable == trainer.policy.parameters.keys()


# Update


def test_neither_padding_nor_what_follows_the_end_reaches_loss_or_gradient(make_trainer, prompts):
    trainer = make_trainer(replace(CONFIG, micro_batch_size=5))
    _, [micro], targets = scored_targets(trainer, prompts)
    losses, plain = gradients(trainer, [micro], targets)
    padding = micro.attention_mask == 0
    assert padding[:, 0].any()
    assert padding[:, -1].any()
    other = replace(micro, input_ids=micro.input_ids.masked_fill(padding, 77))
    other_losses, changed = gradients(trainer, [other], targets)
    assert losses == other_losses
    assert all(torch.equal(a, b) for a, b in zip(plain, changed, strict=True))
    assert any(gradient.any() for gradient in plain)


def test_tokens_sampled_past_the_end_change_nothing(make_trainer, prompts):
    trainer = make_trainer()
    rollout, minibatch, targets = scored_targets(trainer, prompts)
    filled = replace(rollout, responses=rollout.responses.masked_fill(~rollout.mask, 77))
    assert not torch.equal(filled.responses, rollout.responses)
    [other] = partition(filled, range(len(prompts)), len(prompts), 2, trainer.policy.pad_token_id)
    _, plain = gradients(trainer, minibatch, targets)
    _, changed = gradients(trainer, other, targets)
    assert all(torch.equal(a, b) for a, b in zip(plain, changed, strict=True))


def test_micro_batches_add_up_to_the_gradient_of_the_whole_minibatch(make_trainer, prompts):
    trainer = make_trainer(replace(CONFIG, micro_batch_size=2))
    rollout, minibatch, targets = scored_targets(trainer, prompts)
    [whole] = partition(rollout, range(5), 5, 5, trainer.policy.pad_token_id)
    losses, in_parts = gradients(trainer, minibatch, targets)
    whole_losses, at_once = gradients(trainer, whole, targets)
    assert len(minibatch) == 3
    assert len(whole) == 1
    assert losses.policy_loss == pytest.approx(whole_losses.policy_loss, rel=1e-5)
    assert losses.value_loss == pytest.approx(whole_losses.value_loss, rel=1e-5)
    for part, whole_gradient in zip(in_parts, at_once, strict=True):
        assert_close(part, whole_gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_is_that_of_the_formulas_at_the_configured_ranges_and_weight(make_trainer, prompts):
    config = replace(CONFIG, micro_batch_size=5, clip_range=0.05, value_clip_range=0.3, value_coeff=0.7)
    trainer = make_trainer(config)
    _, [micro], targets = scored_targets(trainer, prompts)
    targets = replace(targets, old_values=targets.old_values + 1.0)
    losses, found = gradients(trainer, [micro], targets)

    logits, values = trainer.policy.forward(micro)
    logprobs, old = token_logprobs(logits, micro.responses), targets.old_logprobs
    policy = clipped_policy_loss(logprobs, old, targets.advantages, micro.mask, 0.05)
    value = clipped_value_loss(values, targets.old_values, targets.returns, micro.mask, 0.3)
    assert losses.policy_loss == pytest.approx(policy.loss.item())
    assert losses.value_loss == pytest.approx(value.loss.item())
    assert losses.clip_fraction == pytest.approx(policy.clip_fraction.item())
    assert losses.clip_fraction > 0.1
    assert losses.ratio == pytest.approx(masked_mean((logprobs - old).exp(), micro.mask).item())
    assert losses.update_kl == pytest.approx(masked_mean(kl_k3(old, logprobs), micro.mask).item(), rel=1e-4)
    parameters = [*trainer.policy.parameters.values(), *trainer.policy.value_head.parameters()]
    expected = torch.autograd.grad(policy.loss + 0.7 * value.loss, parameters)
    for gradient, formula in zip(found, expected, strict=True):
        assert_close(gradient, formula)


def test_gradient_checkpointing_gives_the_same_gradients_and_no_dropout(make_trainer, prompts):
    trainer = make_trainer()
    _, minibatch, targets = scored_targets(trainer, prompts)
    _, plain = gradients(trainer, minibatch, targets)
    recomputed = []
    attention = trainer.policy.base.model.layers[0].self_attn
    handle = attention.register_forward_hook(lambda *_: recomputed.append(1))
    trainer.policy.base.activation_checkpointing_enable({"use_reentrant": False})
    _, checkpointed = gradients(trainer, minibatch, targets)
    handle.remove()
    assert len(recomputed) == 2 * len(minibatch)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))
    assert not any(module.training for module in trainer.policy.model.modules())


QUANTISED = pytest.mark.parametrize(
    "quantization",
    [
        BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        ),
        BitsAndBytesConfig(load_in_8bit=True),
    ],
    ids=["nf4", "int8"],
)


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """Rows of 64 weights, the size of a block of NF4."""
    return tiny_llama(tmp_path_factory.mktemp("wide"), hidden_size=64)


@QUANTISED
@BOTH_REFERENCES
def test_first_ratios_and_kl_are_exact_over_a_quantised_base(
    make_trainer, make_model, prompts, wide_folder, quantization, reference
):
    model = make_model(torch.bfloat16, wide_folder, reference=reference, quantization_config=quantization)
    first, second = list(make_trainer(model=model).train(prompts, steps=2))
    assert (first.ratio_first, first.kl_k1, first.kl_k3, second.ratio_first) == (1.0, 0.0, 0.0, 1.0)
    assert second.kl_k3 > 0


@QUANTISED
@BOTH_REFERENCES
def test_a_quantised_layer_scores_by_the_kernel_that_updates(
    make_trainer, make_model, prompts, wide_folder, quantization, reference
):
    # bitsandbytes chooses its kernel by whether a gradient is wanted; on some devices the two round differently.
    model = make_model(torch.bfloat16, wide_folder, reference=reference, quantization_config=quantization)
    trainer = make_trainer(model=model)
    wanted = []
    for name, layer in model.named_modules():
        if name.endswith("base_layer"):
            layer.register_forward_pre_hook(
                lambda _, args: wanted.append(torch.is_grad_enabled() and args[0].requires_grad)
            )
    scored_targets(trainer, prompts)
    assert wanted
    assert all(wanted)


@QUANTISED
def test_gradients_pass_through_a_quantised_base_that_has_generated_before(
    make_trainer, make_model, prompts, wide_folder, quantization
):
    """Against the base with its quantised weights written out in fp32."""
    quantised = make_model(torch.bfloat16, wide_folder, quantization_config=quantization)
    plain = make_model(torch.float32, wide_folder)
    quantised.generate(torch.tensor([prompts[0].input_ids]), max_new_tokens=2)
    weights = {name: layer for name, layer in plain.named_modules() if name.endswith("base_layer")}
    trainers = [make_trainer(model=model) for model in (quantised, plain)]
    with torch.no_grad():
        for name, layer in quantised.named_modules():
            if name in weights:
                eye = torch.eye(layer.in_features, dtype=torch.bfloat16)
                weights[name].weight.copy_(layer(eye).T)
    _, minibatch, targets = scored_targets(trainers[1], prompts)
    ours, expected = (
        torch.cat([gradient.flatten() for gradient in gradients(trainer, minibatch, targets)[1]])
        for trainer in trainers
    )
    assert torch.cosine_similarity(ours, expected, dim=0) > 0.99


def test_an_adapter_without_gradients_ends_the_run(make_trainer, prompts):
    trainer = make_trainer()

    def detach(module, args, output):
        output.last_hidden_state = output.last_hidden_state.detach()

    trainer.policy.base.base_model.register_forward_hook(detach)
    with pytest.raises(RuntimeError, match="no gradient reached the adapter"):
        trainer.step(prompts)


def test_an_update_ends_at_the_minibatch_that_left_the_old_policy_too_far(make_trainer, prompts):
    # Five responses are two minibatches, over two epochs. The first is always taken: its KL is exactly 0.
    free, bound = make_trainer(), make_trainer(replace(CONFIG, update_kl_limit=1e-9))
    assert [trainer.step(prompts).stopped_early for trainer in (free, bound)] == [False, True]
    taken = [trainer.optimizer.state_dict()["state"][0]["step"] for trainer in (free, bound)]
    assert [int(step) for step in taken] == [4, 1]


def test_gradients_are_clipped_together(make_trainer, prompts):
    trainer = make_trainer(replace(CONFIG, max_grad_norm=1e-3))
    _, minibatch, targets = scored_targets(trainer, prompts)
    losses, _ = gradients(trainer, minibatch, targets)
    assert trainer.optimizer_step(losses) > 1e-3
    parameters = [*trainer.policy.parameters.values(), *trainer.policy.value_head.parameters()]
    norm = torch.cat([parameter.grad.flatten() for parameter in parameters]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_a_gradient_that_is_no_number_ends_the_run_before_a_weight_moves(make_trainer, prompts):
    trainer = make_trainer()
    before = {name: weight.clone() for name, weight in trainer.policy.weights().items()}
    trainer.policy.value_head.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingDiverged, match="PPO step 1"):
        trainer.step(prompts)
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.policy.weights().items())


# Scores


def test_a_response_without_a_score_is_left_out(make_trainer, prompts):
    seen = []

    def reward(texts, responses):
        seen.extend(zip(texts, responses, strict=True))
        return [1.0, None, 3.0, math.nan, 5.0]

    trainer = make_trainer(replace(CONFIG, missing_eos_penalty=0.0, kl_coeff=0.0), reward)
    placed = []
    place = trainer.partition
    trainer.partition = lambda rollout: placed.append(rollout) or place(rollout)
    step = trainer.step(prompts)
    assert step.missing_scores == 2
    assert step.score_mean == step.reward_mean == 3.0
    [rollout] = placed
    kept = [trainer.tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in rollout.responses]
    assert list(zip([prompt.text for prompt in rollout.prompts], kept, strict=True)) == [
        seen[i] for i in (0, 2, 4)
    ]
    assert step.response_tokens == rollout.mask.sum()


@pytest.mark.parametrize(
    ("scores", "complaint"),
    [
        ([1.0, 2.0], "one score each"),
        (torch.ones(5, 1), "one score each"),
        ([None] * 5, "no score for any"),
        ([1.0, 2.0, 3.0, 4.0, math.inf], "infinite"),
    ],
    ids=["too few", "wrong shape", "none at all", "infinite"],
)
def test_scores_that_are_no_scores_are_refused_and_nothing_is_trained(
    make_trainer, prompts, scores, complaint
):
    trainer = make_trainer(reward=lambda texts, responses: scores)
    before = {name: weight.clone() for name, weight in trainer.policy.weights().items()}
    with pytest.raises(ValueError, match=complaint):
        trainer.step(prompts)
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.policy.weights().items())
    assert trainer.steps_done == 0


def test_a_response_that_was_cut_off_is_paid_less(make_trainer, prompts):
    config = replace(CONFIG, missing_eos_penalty=2.0, kl_coeff=0.0)
    step = make_trainer(config, lambda texts, responses: torch.ones(len(texts))).step(prompts * 4)
    assert 0 < step.eos_fraction < 1
    assert step.score_mean == 1.0
    assert step.reward_mean == pytest.approx(1.0 - 2.0 * (1 - step.eos_fraction))


# KL


def test_the_kl_price_adapts_only_if_there_is_a_target(make_trainer, prompts):
    fixed = make_trainer(replace(CONFIG, kl_coeff=0.05))
    adaptive = make_trainer(replace(CONFIG, kl_coeff=0.05, target_kl=6.0))
    assert [fixed.step(prompts).kl_coeff, fixed.kl_coeff] == [0.05, 0.05]
    assert adaptive.step(prompts).kl_coeff == 0.05  # the price charged; the KL of 0 then lowers it by 2 %
    assert adaptive.kl_coeff == pytest.approx(0.05 * 0.98)


def test_a_policy_too_far_from_its_reference_ends_the_run_at_the_last_one_that_was_not(make_trainer, prompts):
    trainer = make_trainer(replace(CONFIG, learning_rate=0.1, max_kl=1.0))
    first = {name: weight.clone() for name, weight in trainer.policy.weights().items()}
    steps = list(trainer.train(prompts, steps=50))
    last = steps[-1]
    assert last.kl_k1 > 1.0
    assert all(step.kl_k1 <= 1.0 for step in steps[:-1])
    assert "above max_kl 1" in trainer.stop_reason
    assert f"{last.kl_k1:.1f} nats" in trainer.stop_reason
    assert last.stop_reason == trainer.stop_reason
    assert math.isnan(last.policy_loss)
    assert "loss" not in last.metrics()
    if len(steps) == 2:  # the first policy was the last one within the bound
        assert all(torch.equal(weight, first[name]) for name, weight in trainer.policy.weights().items())
    rollout, minibatch, _ = scored_targets(trainer, prompts)
    scored = trainer.score(rollout, [minibatch])
    kl = (scored.logprobs - scored.ref_logprobs).sum(dim=1).mean()
    assert kl < last.kl_k1


def test_a_run_that_ended_does_not_go_on_after_a_resume(make_trainer, prompts):
    config = replace(CONFIG, learning_rate=0.1, max_kl=1.0)
    ended = make_trainer(config)
    list(ended.train(prompts, steps=50))
    resumed = make_trainer(config)
    resumed.load_state_dict(ended.state_dict())
    assert list(resumed.train(prompts, steps=50)) == []
    assert resumed.stop_reason == ended.stop_reason != ""


# State


def test_a_resumed_run_takes_the_same_next_steps_bit_for_bit(make_trainer, prompts, tmp_path):
    config = replace(CONFIG, target_kl=3.0, max_kl=1e6)
    whole = make_trainer(config)
    list(whole.train(prompts, steps=2))
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    rest = list(whole.train(prompts, steps=4))

    resumed = make_trainer(config)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.manual_seed(12345)
    again = list(resumed.train(prompts, steps=4))
    assert [step.step for step in again] == [3, 4]
    assert [without_seconds(step) for step in again] == [without_seconds(step) for step in rest]
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys()
    for part in ("adapter", "value_head", "adapter_within_max_kl"):
        assert all(torch.equal(weight, theirs[part][name]) for name, weight in ours[part].items())


def test_another_seed_is_another_run(make_trainer, prompts):
    first, second = (make_trainer(replace(CONFIG, seed=seed)) for seed in (0, 1))
    assert first.step(prompts).response_tokens != second.step(prompts).response_tokens
    with pytest.raises(ValueError, match="seed"):
        second.load_state_dict(first.state_dict())


def test_a_state_of_another_adapter_is_refused(make_trainer):
    state = make_trainer().state_dict()
    state["adapter"].popitem()
    with pytest.raises(ValueError, match="another adapter"):
        make_trainer().load_state_dict(state)


def test_a_step_leaves_the_generators_of_others_alone(make_trainer, prompts):
    trainer = make_trainer()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    trainer.step(prompts)
    assert torch.equal(torch.rand(3), expected)


# The job


def test_every_step_is_reported_under_the_names_a_job_knows(make_trainer, prompts):
    monitor = Recorder()
    trainer = make_trainer()
    steps = list(trainer.train(prompts, steps=2, monitor=monitor))
    assert [(report["step"], report["total"]) for report in monitor.reports] == [(1, 2), (2, 2)]
    assert monitor.reports[-1]["tokens"] == sum(step.response_tokens for step in steps)
    metrics = monitor.reports[0]
    assert metrics["reward"] == steps[0].reward_mean
    assert metrics["loss"] == steps[0].policy_loss
    assert metrics["kl"] == 0.0
    assert monitor.reports[1]["kl"] == steps[1].kl_k3 != steps[1].kl_k1
    assert all(type(metrics[name]) is float for name in metrics.keys() - {"step", "total", "tokens"})


@pytest.mark.parametrize("checks", [0, 1, 5, 9, 10])
def test_a_cancelled_job_stops_within_the_step(make_trainer, prompts, checks):
    # A step of 8 responses asks once at its start, 4 + 4 times when it scores, and 4 times when it updates.
    trainer = make_trainer()
    with pytest.raises(Stopped):
        list(trainer.train(prompts, steps=1, monitor=Recorder(stop_at_check=checks + 1)))
    assert trainer.steps_done == 0
    assert trainer.policy.model.active_adapter == "default"


# What is refused


def test_a_model_without_the_adapter_is_refused(folder):
    base = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match='no adapter "default"'):
        PPOTrainer(base, IdTokenizer(2), share_of_low_ids, CONFIG)


def test_an_adapter_in_bf16_is_refused(make_trainer, make_model):
    with pytest.raises(ValueError, match="fp32"):
        make_trainer(model=make_model().to(torch.bfloat16))


def test_trainable_weights_besides_the_adapter_are_refused(make_trainer, make_model):
    model = make_model()
    model.get_base_model().model.norm.weight.requires_grad_()
    with pytest.raises(ValueError, match="move the reference"):
        make_trainer(model=model)


# Learning


@pytest.mark.parametrize("seed", [0, 1])
def test_the_policy_learns_what_is_rewarded(make_trainer, prompts, seed):
    config = replace(CONFIG, batch_size=32, minibatch_size=16, micro_batch_size=16, missing_eos_penalty=0.0)
    config = replace(config, value_learning_rate=1e-3, kl_coeff=0.01, seed=seed)
    trainer = make_trainer(config, seed=seed, often_ends=False, reference=False)
    steps = list(trainer.train(prompts, steps=30))
    first, last = (sum(step.score_mean for step in some) / 3 for some in (steps[:3], steps[-3:]))
    assert first < 0.6
    assert last > first + 0.15


def test_the_price_of_the_kl_holds_the_policy_back(make_trainer, prompts):
    def drift(kl_coeff):
        config = replace(CONFIG, batch_size=32, minibatch_size=16, micro_batch_size=16, kl_coeff=kl_coeff)
        steps = list(make_trainer(config, often_ends=False).train(prompts, steps=12))
        return sum(step.kl_k3 for step in steps[-3:]) / 3

    assert drift(kl_coeff=1.0) < 0.5 * drift(kl_coeff=0.0)


def test_the_value_head_learns_which_prompts_pay(make_trainer, prompts):
    pay = {prompt.text: 0.5 * rank for rank, prompt in enumerate(prompts)}
    config = replace(
        CONFIG, batch_size=20, learning_rate=1e-6, value_learning_rate=0.03, missing_eos_penalty=0.0
    )
    config = replace(config, minibatch_size=20, micro_batch_size=20, kl_coeff=0.0, value_clip_range=1.0)
    trainer = make_trainer(config, lambda texts, _: [pay[text] for text in texts])
    steps = list(trainer.train(prompts, steps=40))
    assert steps[0].explained_variance == pytest.approx(0.0, abs=1e-5)
    assert steps[-1].explained_variance > 0.5


def test_micro_batches_are_cut_to_their_longest_and_count_positions_from_the_first_real_token():
    prompts = (Prompt("", (11, 12, 13)), Prompt("", (14,)), Prompt("", (15, 16)))
    responses = torch.tensor([[21, EOS, EOS, EOS], [22, 23, EOS, EOS], [24, 25, 26, 27]])
    rollout = Rollout(prompts, responses, response_mask(responses, [EOS]), torch.tensor([True, True, False]))
    [[first], [second]] = partition(rollout, [1, 0, 2], minibatch_size=2, micro_batch_size=2, pad_token_id=0)
    assert first.rows.tolist() == [1, 0]
    assert first.input_ids.tolist() == [[0, 0, 14, 22, 23, EOS], [11, 12, 13, 21, EOS, EOS]]
    assert first.attention_mask.tolist() == [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]
    assert first.position_ids.tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 4]]
    assert first.mask.tolist() == [[True, True, True], [True, True, False]]
    assert first.responses.tolist() == [[22, 23, EOS], [21, EOS, EOS]]
    assert second.input_ids.tolist() == [[15, 16, 24, 25, 26, 27]]
    table = torch.zeros(3, 4)
    first.place(table, torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, math.nan]]))
    assert table.tolist() == [[4.0, 5.0, 0.0, 0.0], [1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert first.rows_of(table).tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]]


def test_a_rollout_keeps_its_rows_together(prompts):
    rollout = Rollout(
        tuple(prompts[:2]), torch.tensor([[1], [2]]), torch.ones(2, 1, dtype=torch.bool), torch.ones(2)
    )
    kept = rollout.keeping(torch.tensor([False, True]))
    assert (kept.prompts, kept.responses.tolist()) == ((prompts[1],), [[2]])
