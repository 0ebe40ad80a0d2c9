from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from neuroweaver.trainer.data.encoding import encode
from neuroweaver.trainer.worker.data.chat import collate, target_losses
from neuroweaver.trainer.worker.models.base import load
from neuroweaver.trainer.worker.models.generation import generate
from neuroweaver.trainer.worker.models.nf4_cpu import packed_for_generation
from neuroweaver.trainer.worker.process.monitor import Silent
from trainer.tiny import tiny_llama
from trainer.worker.sft.test_finetune import CHATS


@pytest.fixture
def folder(tmp_path):
    return tiny_llama(tmp_path / "tiny", hidden_size=64)


def test_a_tokenizer_without_padding_pads_with_its_end_of_sequence(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    _, tokenizer = load(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_a_padding_token_outside_of_the_embedding_is_none(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    model, loaded = load(folder)
    assert tokenizer.pad_token_id == model.get_input_embeddings().num_embeddings
    assert loaded.pad_token_id == loaded.eos_token_id
    batch = collate([*encode(loaded, CHATS[0]), *encode(loaded, CHATS[1])], loaded.pad_token_id)
    assert torch.isfinite(target_losses(model, batch)).all()


@pytest.mark.parametrize(
    ("quantization", "kind"), [("none", "Linear"), ("nf4", "Linear4bit"), ("int8", "Linear8bitLt")]
)
def test_weights_are_loaded_plain_or_quantised_but_for_the_head(folder, quantization, kind):
    model, _ = load(folder, quantization=quantization)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == kind
    assert type(model.lm_head).__name__ == "Linear"
    assert not model.training


def test_an_unknown_quantisation_is_refused(folder):
    with pytest.raises(ValueError, match="nf4"):
        load(folder, quantization="fp4")  # type: ignore[arg-type]


def gradients(folder, *, evaluates_first):
    torch.manual_seed(0)
    base, tokenizer = load(folder, quantization="nf4")
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights="gaussian"))
    with torch.no_grad():  # B begins at 0, which would hide what flows into A
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.01)
    if evaluates_first:
        generate(model, tokenizer, [CHATS[0][:1]], max_new_tokens=4, temperature=0, seed=0, monitor=Silent())
        with torch.no_grad():
            model(torch.tensor([[1, 2, 3]]))
    batch = collate(encode(tokenizer, CHATS[0]), tokenizer.pad_token_id)
    target_losses(model, batch).mean().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def test_evaluating_and_generating_leave_the_gradients_of_a_4_bit_model_as_they_are(folder):
    expected = gradients(folder, evaluates_first=False)
    found = gradients(folder, evaluates_first=True)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_packed_4_bit_weights_say_nearly_the_same_and_go_away_again(folder):
    model, _ = load(folder, quantization="nf4")
    ids = torch.tensor([[5, 6, 7, 8]])
    layer = model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        before, data = model(ids).logits, layer.weight.data
        for _ in range(2):
            with packed_for_generation(model):
                packed = model(ids).logits
            assert layer.weight.data is data or torch.equal(layer.weight.data, data)
        after = model(ids).logits
    assert torch.equal(before, after)
    assert torch.allclose(packed, before, atol=0.05)


@pytest.mark.real_model
def test_the_built_in_model_converts_and_answers(shipped_model):
    model, tokenizer = load(shipped_model)
    assert tokenizer.eos_token == "<|im_end|>"
    assert "quantization_config" not in json.loads((shipped_model / "config.json").read_text())
    question = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = generate(
        model, tokenizer, [question], max_new_tokens=32, temperature=0, seed=0, monitor=Silent()
    )
    assert "Paris" in answer.text
