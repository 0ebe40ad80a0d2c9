from __future__ import annotations

import math

import pytest
import torch

from neuroweaver.statistics.wilson import wilson_interval
from neuroweaver.trainer.worker.models import base
from neuroweaver.trainer.worker.process.monitor import Silent, Stopped
from neuroweaver.trainer.worker.validation.measures import perplexity, win_rate
from trainer.recorder import Recorder
from trainer.tiny import tiny_llama
from trainer.worker.sft.test_finetune import CHATS


# Newcombe 1998, Statistics in Medicine 17:857, table I, method 3; the last two are its printed four digits.
@pytest.mark.parametrize(
    ("successes", "n", "lower", "upper"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_agrees_with_published_values(successes, n, lower, upper):
    assert wilson_interval(successes, n) == pytest.approx((lower, upper), abs=5e-5)


def test_a_wider_confidence_gives_a_wider_interval():
    narrow, wide = wilson_interval(5, 10, confidence=0.9), wilson_interval(5, 10, confidence=0.99)
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]


def test_the_interval_covers_the_true_share_as_often_as_it_says():
    # Wins are whole numbers, so coverage swings about its nominal value from share to share.
    generator = torch.Generator().manual_seed(0)
    shares = 0.05 + 0.9 * torch.rand(20_000, generator=generator)
    wins = torch.binomial(torch.full((20_000,), 40.0), shares, generator=generator)
    intervals = [wilson_interval(won, 40) for won in wins.tolist()]
    covered = [low <= p <= high for p, (low, high) in zip(shares.tolist(), intervals, strict=True)]
    assert 0.945 < sum(covered) / len(covered) < 0.96


def test_a_tie_is_half_a_win_and_a_missing_verdict_counts_nowhere():
    rate = win_rate(["win", "win", "loss", "tie", None, None])
    assert (rate.wins, rate.losses, rate.ties, rate.n, rate.missing) == (2, 1, 1, 4, 2)
    assert rate.rate == pytest.approx(0.625)
    assert (rate.lower, rate.upper) == wilson_interval(2.5, 4)


def test_without_verdicts_nothing_is_claimed():
    rate = win_rate([None, None])
    assert rate.rate is None
    assert (rate.lower, rate.upper, rate.n, rate.missing) == (0.0, 1.0, 0, 2)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return base.load(tiny_llama(tmp_path_factory.mktemp("tiny"), hidden_size=64), dtype=torch.float32)


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
