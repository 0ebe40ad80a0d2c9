"""Which revision answers: by weight, and the same one for a conversation as long as it has any."""

from __future__ import annotations

import hashlib
import math
import random
from collections import OrderedDict
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Final

_REMEMBERED: Final = 100_000

Weights = Mapping[int, float]
"""Revision to weight; a revision without weight is absent or has 0."""


def percent(weights: Weights) -> dict[int, int]:
    """In whole percents that add up to 100, or to 0: the largest remainders are rounded up."""
    total = Fraction(sum(map(Fraction, weights.values())))
    if not total:
        return dict.fromkeys(weights, 0)
    exact = {revision: 100 * Fraction(weight) / total for revision, weight in weights.items()}
    whole = {revision: int(share) for revision, share in exact.items()}
    by_remainder = sorted(exact, key=lambda revision: (whole[revision] - exact[revision], revision))
    for revision in by_remainder[: 100 - sum(whole.values())]:
        whole[revision] += 1
    return whole


def at_random(weights: Weights) -> int | None:
    """A revision, each with the probability of its weight; None if none has any."""
    weighted = [(revision, weight) for revision, weight in weights.items() if weight > 0]
    if not weighted:
        return None
    revisions, each = zip(*weighted, strict=True)
    return int(random.choices(revisions, each)[0])


def by_hash(conversation: str, weights: Weights) -> int | None:
    """Weighted rendezvous hashing: when weights change, conversations move only towards what gained.

    Mosharaf and Ghodsi's "score = -w / ln h"; every process finds the same revision without a memory.
    """
    weighted = [(revision, weight) for revision, weight in weights.items() if weight > 0]
    if not weighted:
        return None
    return max(weighted, key=lambda each: (-each[1] / math.log(_uniform(conversation, each[0])), each[0]))[0]


class Affinity:
    """Remembers where conversations began; the oldest of 100,000 are forgotten, and then found by hash.

    Only a digest of the conversation's id is kept.
    """

    def __init__(self, capacity: int = _REMEMBERED) -> None:
        self._capacity = capacity
        self._revisions: OrderedDict[bytes, int] = OrderedDict()

    def revision(self, conversation: str, weights: Weights, held: Collection[int] = ()) -> int | None:
        """None if no revision has weight. held: those that keep conversations while they cannot serve."""
        key = hashlib.sha256(conversation.encode()).digest()[:16]
        begun = self._revisions.get(key)
        if begun is not None and weights.get(begun, 0) > 0:
            self._revisions.move_to_end(key)
            return begun
        chosen = by_hash(conversation, weights)
        if chosen is not None and begun not in held:
            self._revisions[key] = chosen
            self._revisions.move_to_end(key)
            if len(self._revisions) > self._capacity:
                self._revisions.popitem(last=False)
        return chosen


def _uniform(conversation: str, revision: int) -> float:
    """In (0, 1), neither end included."""
    digest = hashlib.sha256(f"{revision}\0{conversation}".encode()).digest()
    return (int.from_bytes(digest[:6], "big") + 0.5) / 2.0**48
