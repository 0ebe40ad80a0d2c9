from __future__ import annotations

import pytest
import torch

from neuroweaver.serving.engine.generation import Draw
from neuroweaver.serving.engine.sampling import choose

PROBABILITIES = torch.tensor([0.05, 0.5, 0.15, 0.3])


def drawn(uniform, top_p=1.0, temperature=1.0, logits=None):
    logits = PROBABILITIES.log() if logits is None else logits
    return choose(logits[None], [Draw(temperature, top_p, uniform)])[0]


def test_temperature_zero_takes_the_likeliest_token():
    assert drawn(0.99, temperature=0) == 1


@pytest.mark.parametrize("temperature", [1e-3, 1e-5, 1e-12, 5e-324, 0])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_tiny_temperature_is_greedy_also_where_tokens_tie(temperature, top_p):
    tied = torch.tensor([1.0, 5.0, 5.0, 5.0])
    assert {drawn(uniform / 8, top_p, temperature, tied) for uniform in range(8)} == {1}
    # A token that is only a little likelier in what bf16 can tell is the one.
    near = torch.tensor([20.0, 20.125, 19.0], dtype=torch.bfloat16).float()
    assert {drawn(uniform / 8, top_p, temperature, near) for uniform in range(8)} == {1}


def test_a_top_p_that_one_token_fills_is_greedy_also_where_tokens_tie():
    tied = torch.tensor([1.0, 5.0, 5.0, 5.0])
    assert {drawn(uniform / 8, 1e-9, logits=tied) for uniform in range(8)} == {1}
    assert {drawn(uniform / 8, logits=tied) for uniform in range(1, 8)} == {1, 2, 3}


def test_the_share_of_random_numbers_that_choose_a_token_is_its_probability():
    grid = [(step + 0.5) / 1000 for step in range(1000)]
    tokens = choose(PROBABILITIES.log().expand(1000, -1), [Draw(1.0, 1.0, uniform) for uniform in grid])
    shares = torch.bincount(torch.tensor(tokens), minlength=4) / 1000
    assert torch.allclose(shares, PROBABILITIES, atol=0.002)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.5, {1}), (0.51, {1, 3}), (0.8, {1, 3}), (0.81, {1, 2, 3}), (0.0, {1})]
)
def test_a_nucleus_is_the_fewest_tokens_that_reach_top_p(top_p, kept):
    grid = [(step + 0.5) / 200 for step in range(200)]
    found = set(choose(PROBABILITIES.log().expand(200, -1), [Draw(1.0, top_p, uniform) for uniform in grid]))
    assert found == kept


def test_a_nucleus_wider_than_the_candidates_is_found_whole():
    logits = torch.zeros(1, 1000)
    tokens = choose(logits.expand(1000, -1), [Draw(1.0, 0.9, (step + 0.5) / 1000) for step in range(1000)])
    assert len(set(tokens)) in range(895, 906)


def test_a_low_temperature_sharpens_and_a_high_one_flattens():
    grid = [(step + 0.5) / 500 for step in range(500)]

    def share(temperature):
        tokens = choose(PROBABILITIES.log().expand(500, -1), [Draw(temperature, 1.0, each) for each in grid])
        return tokens.count(1) / 500

    assert share(0.1) > 0.99
    assert share(2.0) == pytest.approx((PROBABILITIES**0.5 / (PROBABILITIES**0.5).sum())[1].item(), abs=0.01)


def test_no_row_has_a_say_in_another():
    torch.manual_seed(0)
    logits = torch.randn(8, 600)
    draws = [
        Draw(0.0 if row % 3 == 0 else 0.5 + row / 4, 1.0 if row % 2 else 0.7, row / 8) for row in range(8)
    ]
    together = choose(logits, draws)
    alone = [choose(logits[row : row + 1], [draws[row]])[0] for row in range(8)]
    assert together == alone


def test_the_largest_random_number_chooses_a_token_of_the_vocabulary():
    assert drawn(1 - 2**-53, logits=torch.tensor([0.0, 0.0, -1e9])) == 1
