"""Who gets which buckets: weights become ranges, and a change of weights moves only the difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final

BUCKETS: Final = 1_000_000

Span = tuple[int, int]
"""Buckets from the first up to, not including, the second."""

Spans = tuple[Span, ...]

Allocation = Mapping[str, Spans]
"""The buckets of each variant."""


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


def allocate(weights: Mapping[str, float], history: Sequence[Allocation] = ()) -> Allocation:
    """The ranges of each variant under these weights. history: those of the phases so far, in order.

    Weights that a phase had give its ranges back, so that undoing a change puts everybody where they were.
    With other weights exactly the difference changes hands, which is the least that can: a variant that
    shrinks gives up what it got last; one that grows keeps all it has and first takes what it had before.
    """
    wanted = counts(weights)
    for earlier in reversed(history):
        if all(size(earlier.get(variant, ())) == number for variant, number in wanted.items()):
            return {variant: tuple(earlier.get(variant, ())) for variant in weights}
    allocated = {
        variant: _taken(_longest_held([phase.get(variant, ()) for phase in history]), wanted[variant])
        for variant in weights
    }
    everywhere: Allocation = dict.fromkeys(weights, ((0, BUCKETS),))
    for before in (*reversed(history[:-1]), everywhere):
        for variant in weights:
            free = complement([span for spans in allocated.values() for span in spans])
            liked = _shared(free, before.get(variant, ()))
            missing = wanted[variant] - size(allocated[variant])
            allocated[variant] = merged([*allocated[variant], *_first(liked, missing)])
    return allocated


def moved_share(before: Allocation, after: Allocation) -> float:
    """Share of the buckets whose variant is another one now."""
    stayed = sum(size(_shared(before.get(variant, ()), spans)) for variant, spans in after.items())
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


def _longest_held(history: Sequence[Spans]) -> Iterable[Spans]:
    """A variant's present buckets that it has had since the first phase, then since the second, and so on."""
    return reversed(list(accumulate(reversed(history), _shared)))


def _taken(choices: Iterable[Spans], number: int) -> Spans:
    """So many buckets, or all if there are fewer, those of the first choice first."""
    taken: Spans = ()
    for spans in choices:
        fresh = _shared(spans, complement(taken))
        taken = merged([*taken, *_first(fresh, number - size(taken))])
    return taken


def _shared(some: Spans, others: Spans) -> Spans:
    """The buckets in both. Each is sorted, without overlaps."""
    shared: list[Span] = []
    left, right = 0, 0
    while left < len(some) and right < len(others):
        start, end = max(some[left][0], others[right][0]), min(some[left][1], others[right][1])
        if start < end:
            shared.append((start, end))
        if some[left][1] < others[right][1]:
            left += 1
        else:
            right += 1
    return tuple(shared)
