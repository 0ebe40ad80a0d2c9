from __future__ import annotations

import pytest
import torch

from neuroweaver.statistics.wilson import wilson_interval


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
