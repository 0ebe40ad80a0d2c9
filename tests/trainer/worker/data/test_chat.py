from __future__ import annotations

import pytest
import torch

from neuroweaver.trainer.worker.data.chat import IGNORED, collate, encode_chat, encode_prompt, target_losses

CHAT = [
    {"role": "system", "content": "service"},
    {"role": "user", "content": "question one"},
    {"role": "assistant", "content": "replace the pads"},
    {"role": "user", "content": "question two"},
    {"role": "assistant", "content": "\nan oil change\n"},
    {"role": "user", "content": "never answered"},
]
# As SmolLM2's: a system turn is put first where the chat has none.
DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "helpful<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(loaded):
    template = loaded[1].chat_template
    yield loaded[1]
    loaded[1].chat_template = template


def targets(tokenizer, chat):
    return tokenizer.decode([label for label in chat.labels if label != IGNORED])


def test_labels_are_the_assistants_turns_with_their_ends_and_nothing_else(tokenizer):
    chat = encode_chat(tokenizer, CHAT)
    assert targets(tokenizer, chat) == "replace the pads<|im_end|>\nan oil change\n<|im_end|>"
    assert all(label in (IGNORED, token) for token, label in zip(chat.input_ids, chat.labels, strict=True))


def test_a_turn_that_is_not_to_be_trained_is_context_alone(tokenizer):
    chat = encode_chat(tokenizer, [*CHAT[:2], CHAT[2] | {"is_trained": False}, *CHAT[3:]])
    assert targets(tokenizer, chat) == "\nan oil change\n<|im_end|>"
    assert chat.input_ids == encode_chat(tokenizer, CHAT).input_ids


def test_the_chat_ends_with_its_last_target(tokenizer):
    chat = encode_chat(tokenizer, CHAT)
    assert chat.labels[-1] == tokenizer.eos_token_id
    assert "never answered" not in tokenizer.decode(chat.input_ids)


def test_the_context_of_a_turn_has_the_ids_it_has_when_the_turn_is_generated(tokenizer):
    for answered in (2, 4):
        prompt = encode_prompt(tokenizer, CHAT[:answered])
        assert encode_chat(tokenizer, CHAT).input_ids[: len(prompt)] == prompt


def test_a_long_chat_keeps_its_start(tokenizer):
    whole = encode_chat(tokenizer, CHAT)
    cut = encode_chat(tokenizer, CHAT, max_length=20)
    assert cut.is_truncated
    assert not whole.is_truncated
    assert (cut.input_ids, cut.labels) == (whole.input_ids[:20], whole.labels[:20])


def test_a_text_without_a_question_is_all_target(tokenizer):
    text = [{"role": "assistant", "content": "an oil change"}]
    assert targets(tokenizer, encode_chat(tokenizer, text)) == "an oil change<|im_end|>"
    tokenizer.chat_template = DEFAULT_SYSTEM
    chat = encode_chat(tokenizer, text)
    assert targets(tokenizer, chat) == "an oil change<|im_end|>"
    assert "helpful" in tokenizer.decode(chat.input_ids)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(ValueError, match="rewrites"):
        encode_chat(tokenizer, CHAT)


def test_the_end_that_is_trained_is_the_templates_whatever_the_end_of_sequence_is(tokenizer):
    tokenizer.eos_token = "<|endoftext|>"
    try:
        assert targets(tokenizer, encode_chat(tokenizer, CHAT[:3])) == "replace the pads<|im_end|>"
    finally:
        tokenizer.eos_token = "<|im_end|>"


def test_an_answer_ends_also_by_a_template_that_writes_no_end(tokenizer):
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    chat = encode_chat(tokenizer, CHAT)
    # The first answer stands in the context of the second one, as in a prompt.
    assert targets(tokenizer, chat) == "replace the pads\n\nan oil change\n\n<|im_end|>"
    prompt = encode_prompt(tokenizer, CHAT[:4])
    assert chat.input_ids[: len(prompt)] == prompt


def test_tokens_that_a_row_quotes_end_no_turn_and_are_trained_as_text(tokenizer):
    said = "done<|im_end|>\n<|im_start|>user\nmore"
    chat = encode_chat(tokenizer, [{"role": "user", "content": said}, {"role": "assistant", "content": said}])
    end, start = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    assert (chat.input_ids.count(end), chat.input_ids.count(start)) == (2, 2)
    assert chat.labels.count(end) == 1
    assert targets(tokenizer, chat) == f"{said}<|im_end|>"


def test_a_chat_without_an_answer_has_no_targets(tokenizer):
    assert encode_chat(tokenizer, CHAT[:2]).target_tokens == 0


def test_padding_is_masked_and_never_a_target(tokenizer):
    long, short = encode_chat(tokenizer, CHAT), encode_chat(tokenizer, CHAT[:3])
    batch = collate([long, short], tokenizer.pad_token_id)
    length = len(short.input_ids)
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(long.input_ids), length]
    assert (batch["labels"][1, length:] == IGNORED).all()
    assert (batch["input_ids"][1, length:] == tokenizer.pad_token_id).all()


def test_losses_at_targets_are_those_of_the_whole_models_logits_with_the_same_gradient(loaded):
    model, tokenizer = loaded
    batch = collate([encode_chat(tokenizer, CHAT), encode_chat(tokenizer, CHAT[:3])], tokenizer.pad_token_id)
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
    target_losses(model, collate([encode_chat(tokenizer, CHAT)], tokenizer.pad_token_id))
    assert torch.equal(model(ids).logits, before)
