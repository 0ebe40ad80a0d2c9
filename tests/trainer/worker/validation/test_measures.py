from __future__ import annotations

import math

import pytest
import torch

from neuroweaver.statistics.wilson import wilson_interval
from neuroweaver.trainer.worker.process.monitor import Silent, Stopped
from neuroweaver.trainer.worker.validation.measures import perplexity, win_rate
from trainer.recorder import Recorder
from trainer.worker.sft.test_finetune import CHATS


def test_a_tie_is_half_a_win_and_a_missing_verdict_counts_nowhere():
    rate = win_rate(["win", "win", "loss", "tie", None, None])
    assert (rate.wins, rate.losses, rate.ties, rate.missing) == (2, 1, 1, 2)
    assert rate.win_rate == pytest.approx(0.625)
    assert (rate.win_rate_lower, rate.win_rate_upper) == wilson_interval(2.5, 4)


def test_without_verdicts_nothing_is_claimed():
    rate = win_rate([None, None])
    assert (rate.win_rate, rate.win_rate_lower, rate.win_rate_upper, rate.missing) == (0.0, 0.0, 1.0, 2)


def test_perplexity_is_that_of_the_answer_tokens_alone(loaded):
    model, tokenizer = loaded
    question = "<|im_start|>user\nquestion one<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenizer(question)["input_ids"]
    answer = tokenizer("replace the pads<|im_end|>")["input_ids"]
    logits = model(torch.tensor([prompt + answer])).logits[0]
    logprobs = logits.log_softmax(-1)[torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1), answer]
    chat = [{"role": "user", "content": "question one"}, {"role": "assistant", "content": "replace the pads"}]
    loss = perplexity(model, tokenizer, [chat], Silent())
    assert loss.tokens == len(answer)
    assert loss.mean == pytest.approx(-logprobs.mean().item(), rel=1e-5)
    assert loss.perplexity == pytest.approx(math.exp(loss.mean))


def test_batches_and_padding_change_no_loss(loaded):
    model, tokenizer = loaded
    together = perplexity(model, tokenizer, CHATS, Silent(), batch_size=5)
    one_by_one = perplexity(model, tokenizer, CHATS, Silent(), batch_size=1)
    assert together.mean == pytest.approx(one_by_one.mean, rel=1e-5)
    assert together.tokens == one_by_one.tokens


def test_nothing_to_measure_is_no_number(loaded):
    assert math.isnan(perplexity(*loaded, [], Silent()).mean)


def test_measuring_stops_with_the_job(loaded):
    with pytest.raises(Stopped):
        perplexity(*loaded, CHATS, Recorder(stop_at_check=2), batch_size=4)
