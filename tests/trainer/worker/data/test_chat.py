from __future__ import annotations

import pytest
import torch

from neuroweaver.trainer.data.encoding import IGNORED, encode
from neuroweaver.trainer.worker.data.chat import collate, encode_prompt, target_losses

CHAT = [
    {"role": "system", "content": "service"},
    {"role": "user", "content": "question one"},
    {"role": "assistant", "content": "replace the pads"},
    {"role": "user", "content": "question two"},
    {"role": "assistant", "content": "\nan oil change\n"},
    {"role": "user", "content": "never answered"},
]


def test_padding_is_masked_and_never_a_target(loaded):
    _, tokenizer = loaded
    (long,), (short,) = encode(tokenizer, CHAT), encode(tokenizer, CHAT[:3])
    batch = collate([long, short], tokenizer.pad_token_id)
    length = len(short.input_ids)
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(long.input_ids), length]
    assert (batch["labels"][1, length:] == IGNORED).all()
    assert (batch["input_ids"][1, length:] == tokenizer.pad_token_id).all()


def test_losses_at_targets_are_those_of_the_whole_models_logits_with_the_same_gradient(loaded):
    model, tokenizer = loaded
    batch = collate([*encode(tokenizer, CHAT), *encode(tokenizer, CHAT[:3])], tokenizer.pad_token_id)
    losses = target_losses(model, batch)
    whole = model(**batch).loss  # mean over the labels, shifted by the model itself
    assert losses.mean().item() == pytest.approx(whole.item(), rel=1e-5)
    weight = model.model.layers[0].mlp.up_proj.weight
    (expected,) = torch.autograd.grad(whole, weight)
    (gradient,) = torch.autograd.grad(losses.mean(), weight)
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-7)


def test_the_head_is_left_without_a_hook(loaded):
    model, tokenizer = loaded
    ids = torch.tensor([encode_prompt(tokenizer, CHAT[:2])])
    before = model(ids).logits
    target_losses(model, collate(encode(tokenizer, CHAT), tokenizer.pad_token_id))
    assert torch.equal(model(ids).logits, before)
