"""The next token of each row of a batch, each row by its own rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from neuroweaver.serving.answer import Draw

# Sorting a whole vocabulary costs more than the network of a small model; nuclei are nearly always smaller.
_CANDIDATES: Final = 256


def choose(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token a row. logits: (rows, vocabulary)."""
    chosen = logits.argmax(dim=-1)
    rows = [row for row, draw in enumerate(draws) if draw.temperature > 0]
    if rows:
        index = torch.tensor(rows, device=logits.device)
        chosen[index] = _sampled(logits[index], [draws[row] for row in rows])
    return [int(token) for token in chosen.tolist()]


def _sampled(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """By inversion: the row's uniform number picks the token, so that no other row has a say in it."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    # float64: sums over 10^5 probabilities must end at 1.
    temperatures = column([max(draw.temperature, 1e-4) for draw in draws])
    probabilities = (logits.double() / temperatures).softmax(dim=-1)
    top_p = column([draw.top_p for draw in draws])
    uniform = column([draw.uniform for draw in draws])
    if all(draw.top_p >= 1 for draw in draws):
        return _inverted(probabilities, uniform)
    ranked, tokens = _ranked(probabilities, top_p)
    # Holtzman et al. 2020, arXiv 1904.09751: the smallest set of top tokens whose mass reaches top_p.
    before = ranked.cumsum(dim=-1) - ranked
    nucleus = torch.where(before < top_p, ranked, 0.0)
    return tokens.gather(-1, _inverted(nucleus, uniform)[:, None])[:, 0]


def _ranked(probabilities: torch.Tensor, top_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities from the highest down with their tokens: as many as every row's nucleus needs."""
    ranked, tokens = probabilities.topk(min(_CANDIDATES, probabilities.shape[-1]), dim=-1)
    if bool((ranked.sum(dim=-1, keepdim=True) >= top_p).all()):
        return ranked, tokens
    ranked, tokens = probabilities.sort(dim=-1, descending=True)
    return ranked, tokens


def _inverted(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Where the running sum of each row of `weights` first exceeds its share `uniform`."""
    sums = weights.cumsum(dim=-1)
    place = torch.searchsorted(sums, uniform * sums[:, -1:], right=True)[:, 0]
    return place.clamp(max=weights.shape[-1] - 1)
