"""Who gets which buckets: weights become ranges, and a change of weights moves only the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

BUCKETS: Final = 1_000_000

Span = tuple[int, int]
"""Buckets from the first up to, not including, the second."""

Spans = tuple[Span, ...]


def counts(weights: Mapping[str, float]) -> dict[str, int]:
    """Buckets of each variant: together exactly all of them, each within one of its exact share.

    weights: not negative, together about 1. What rounding down leaves over goes to the largest remainders.
    """
    total = sum(weights.values())
    exact = {variant: weight / total * BUCKETS for variant, weight in weights.items()}
    whole = {variant: int(share) for variant, share in exact.items()}
    by_remainder = sorted(
        (variant for variant in weights if weights[variant] > 0),
        key=lambda variant: (whole[variant] - exact[variant], variant),
    )
    for variant in by_remainder[: BUCKETS - sum(whole.values())]:
        whole[variant] += 1
    return whole


def allocate(weights: Mapping[str, float], before: Mapping[str, Spans] | None = None) -> dict[str, Spans]:
    """The ranges of each variant under these weights, as close as can be to those `before`.

    A variant that shrinks keeps its first buckets; one that grows keeps all it has and takes of those given
    up. So exactly the difference of the weights changes hands, which is the least that can.
    """
    wanted = counts(weights)
    kept = {variant: _first((before or {}).get(variant, ()), wanted[variant]) for variant in weights}
    free = complement([span for spans in kept.values() for span in spans])
    allocated: dict[str, Spans] = {}
    for variant in weights:
        missing = wanted[variant] - size(kept[variant])
        taken = _first(free, missing)
        free = complement([*taken, *complement(free)])
        allocated[variant] = merged([*kept[variant], *taken])
    return allocated


def moved_share(before: Mapping[str, Spans], after: Mapping[str, Spans]) -> float:
    """Share of the buckets whose variant is another one now."""
    stayed = sum(_overlap(before.get(variant, ()), spans) for variant, spans in after.items())
    return (BUCKETS - stayed) / BUCKETS


def reserve(share: float, taken: Sequence[Span]) -> Spans | None:
    """The first free buckets of a layer for this share; None if there are too few. share: in (0, 1]."""
    wanted = max(1, round(share * BUCKETS))
    free = complement(taken)
    return _first(free, wanted) if size(free) >= wanted else None


def size(spans: Sequence[Span]) -> int:
    return sum(end - start for start, end in spans)


def complement(spans: Sequence[Span]) -> Spans:
    """The buckets in none of these."""
    free: list[Span] = []
    position = 0
    for start, end in sorted(spans):
        if start > position:
            free.append((position, start))
        position = max(position, end)
    if position < BUCKETS:
        free.append((position, BUCKETS))
    return tuple(free)


def merged(spans: Sequence[Span]) -> Spans:
    """Sorted, with those that touch made one."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        elif end > start:
            joined.append((start, end))
    return tuple(joined)


def _first(spans: Sequence[Span], number: int) -> Spans:
    """The first so many buckets of these, or all if there are fewer."""
    chosen: list[Span] = []
    for start, end in sorted(spans):
        length = min(end - start, number)
        if length <= 0:
            break
        chosen.append((start, start + length))
        number -= length
    return tuple(chosen)


def _overlap(some: Sequence[Span], others: Sequence[Span]) -> int:
    return sum(
        max(0, min(end, other_end) - max(start, other_start))
        for start, end in some
        for other_start, other_end in others
    )
