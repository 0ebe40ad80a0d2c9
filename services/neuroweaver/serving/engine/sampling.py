"""The next token of each row of a batch, each row by its own rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from neuroweaver.serving.engine.generation import Draw

# Up to here a temperature leaves every token but the likeliest without a share. Tokens that tie at the top,
# as they do in bf16, would still be drawn from: it is greedy instead, which takes the same one each time.
GREEDY_TEMPERATURE: Final = 1e-3
# Sorting a whole vocabulary costs more than the network of a small model; nuclei are nearly always smaller.
_CANDIDATES: Final = 256


def choose(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token a row, whatever the other rows are. logits: (rows, vocabulary)."""
    chosen = logits.argmax(dim=-1)
    sampled = [row for row, draw in enumerate(draws) if not _is_greedy(draw, logits.shape[-1])]
    whole = [row for row in sampled if draws[row].top_p >= 1]
    nucleus = [row for row in sampled if draws[row].top_p < 1]
    for rows, sample in ((whole, _sampled), (nucleus, _sampled_from_nucleus)):
        if rows:
            index = torch.tensor(rows, device=logits.device)
            # float64: sums over 10^5 probabilities must end at 1.
            chosen[index] = sample(logits[index].double(), [draws[row] for row in rows])
    return [int(token) for token in chosen.tolist()]


def _is_greedy(draw: Draw, vocabulary: int) -> bool:
    """The likeliest token has at least an even share of the mass, so a top_p up to that keeps it alone."""
    return draw.temperature <= GREEDY_TEMPERATURE or draw.top_p * vocabulary <= 1


def _sampled(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    return _inverted(_probabilities(logits, draws), _column(logits, [draw.uniform for draw in draws]))


def _sampled_from_nucleus(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Holtzman et al. 2020, arXiv 1904.09751: of the fewest top tokens whose mass reaches top_p."""
    top_p = _column(logits, [draw.top_p for draw in draws])
    ranked, tokens = _ranked(_probabilities(logits, draws), top_p)
    before = ranked.cumsum(dim=-1) - ranked
    is_inside = before < top_p
    is_inside[:, 0] = True
    nucleus = torch.where(is_inside, ranked, 0.0)
    place = _inverted(nucleus, _column(logits, [draw.uniform for draw in draws]))
    return tokens.gather(-1, place[:, None])[:, 0]


def _probabilities(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    temperatures = _column(logits, [draw.temperature for draw in draws])
    return (logits / temperatures).softmax(dim=-1)


def _column(like: torch.Tensor, values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _ranked(probabilities: torch.Tensor, top_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities from the highest down with their tokens: as many as every row's nucleus needs."""
    ranked, tokens = probabilities.topk(min(_CANDIDATES, probabilities.shape[-1]), dim=-1)
    if bool((ranked.sum(dim=-1, keepdim=True) >= top_p).all()):
        return ranked, tokens
    by_rank = probabilities.sort(dim=-1, descending=True)
    return by_rank.values, by_rank.indices


def _inverted(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Where the running sum of each row of `weights` first exceeds its share `uniform`.

    So a row's own number picks its token from its own logits. These may differ in their last bits with the
    rows that are computed beside it; see `requests.Asked`.
    """
    sums = weights.cumsum(dim=-1)
    place = torch.searchsorted(sums, uniform * sums[:, -1:], right=True)[:, 0]
    return place.clamp(max=weights.shape[-1] - 1)
