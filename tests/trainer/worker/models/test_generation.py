from __future__ import annotations

import pytest
import torch
from transformers import AddedToken, AutoTokenizer, GenerationConfig

from neuroweaver.trainer.worker.data.chat import encode_prompt
from neuroweaver.trainer.worker.models import base
from neuroweaver.trainer.worker.models.generation import generate, save_ends, text_of
from neuroweaver.trainer.worker.process.monitor import Silent, Stopped
from trainer.recorder import Recorder

QUESTIONS = [
    [{"role": "user", "content": "the brakes " * count}] for count in (5, 1, 9, 2, 7, 3)
]  # lengths out of order


@pytest.fixture(scope="module")
def loaded(folder):
    model, tokenizer = base.load(folder, dtype=torch.float32)
    with torch.no_grad():  # as initialised, it repeats the last token whatever came before
        for weight in model.model.layers.parameters():
            weight.mul_(10)
    return model, tokenizer


def answers(
    loaded, *, conversations=QUESTIONS, monitor=None, temperature=0.0, seed=0, batch_size=4, length=8
):
    return generate(
        *loaded, conversations, max_new_tokens=length, temperature=temperature, seed=seed,
        monitor=monitor or Silent(), batch_size=batch_size,
    )  # fmt: skip


def greedy_by_hand(model, tokenizer, messages, length):
    ids = encode_prompt(tokenizer, messages)
    new: list[int] = []
    while len(new) < length and tokenizer.eos_token_id not in new:
        new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return tuple(new)


def test_each_conversation_gets_the_answer_it_would_get_alone_in_the_order_given(loaded):
    model, tokenizer = loaded
    expected = [greedy_by_hand(model, tokenizer, messages, 8) for messages in QUESTIONS]
    assert [answer.tokens for answer in answers(loaded)] == expected
    assert len(set(expected)) > 1


def test_an_answer_ends_with_the_end_of_sequence_or_is_not_finished(loaded):
    model, tokenizer = loaded
    first = answers(loaded, conversations=QUESTIONS[:1])[0]
    assert not first.finished
    assert len(first.tokens) == 8
    assert first.text == tokenizer.decode(first.tokens).strip()
    end = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [end, first.tokens[2]]
    try:
        cut = answers(loaded, conversations=QUESTIONS[:1])[0]
    finally:
        model.generation_config.eos_token_id = end
    assert cut.finished
    assert cut.tokens == first.tokens[: first.tokens.index(first.tokens[2]) + 1]


def test_generation_ends_where_the_template_does_and_an_adapter_says_so(loaded, folder, tmp_path):
    model, tokenizer = loaded[0], AutoTokenizer.from_pretrained(folder)
    first = answers(loaded, conversations=QUESTIONS[:1])[0].tokens
    end = tokenizer.convert_ids_to_tokens(first[0])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", end)
    tokenizer.add_tokens([AddedToken(end, special=False)])
    answer = generate(
        model, tokenizer, QUESTIONS[:1], max_new_tokens=8, temperature=0.0, seed=0, monitor=Silent()
    )[0]
    # Neither the tokenizer nor the model calls it an end of sequence, or special.
    assert answer.finished
    assert answer.tokens[-1] == first[0]
    save_ends(model, tokenizer, tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert saved.eos_token_id == sorted({first[0], tokenizer.eos_token_id})


def test_what_ends_an_answer_is_none_of_its_text(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("<over>", special=False)])
    tokens = tokenizer("the pads<over>")["input_ids"]
    assert text_of(tokenizer, tokens, tokens[-1:]) == "the pads"
    assert text_of(tokenizer, tokens[:-1], tokens[-1:]) == "the pads"
    assert text_of(tokenizer, tokens, []) == "the pads<over>"


def test_sampling_depends_on_the_seed_alone_and_leaves_the_random_state(loaded):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = answers(loaded, temperature=1.0, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert answers(loaded, temperature=1.0, seed=1) == first
    assert answers(loaded, temperature=1.0, seed=2) != first


def test_progress_counts_answered_conversations_and_tokens(loaded):
    monitor = Recorder()
    found = answers(loaded, monitor=monitor)
    assert [(entry["step"], entry["total"]) for entry in monitor.reports] == [(4, 6), (6, 6)]
    assert monitor.reports[-1]["tokens"] == sum(len(answer.tokens) for answer in found)


def test_a_stopped_job_stops_within_a_batch(loaded):
    monitor = Recorder(stop_at_check=4)
    with pytest.raises(Stopped):
        answers(loaded, monitor=monitor, length=100)
    assert monitor.checks == 4
    assert monitor.reports == []


def test_the_training_mode_is_put_back(loaded):
    model, _ = loaded
    model.train()
    try:
        answers(loaded, conversations=QUESTIONS[:1])
        assert model.training
    finally:
        model.eval()


def test_no_conversation_gives_no_answer(loaded):
    assert answers(loaded, conversations=[]) == []
