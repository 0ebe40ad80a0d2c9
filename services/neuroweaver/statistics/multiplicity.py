"""How a family of comparisons shares the error level."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum


class Correction(Enum):
    HOLM = "holm"
    """Bounds the chance of any false positive, whatever the comparisons have to do with each other."""
    BENJAMINI_HOCHBERG = "benjamini_hochberg"
    """Bounds the expected share of false positives among the positives, if the comparisons are independent or
    depend positively on each other.
    """
    NONE = "none"
    """Each comparison at the full level."""


def adjusted(p_values: Sequence[float | None], correction: Correction) -> list[float | None]:
    """The p-values such that each may be compared with the level of the whole family.

    None: a comparison that has no p-value yet; it keeps its place in the family, so that the bar does not
    rise when it gets one. Always-valid p-values stay so: at any moment one may stop, these are p-values.
    """
    family = [1.0 if p is None else p for p in p_values]
    if correction is Correction.HOLM:
        family = holm(family)
    elif correction is Correction.BENJAMINI_HOCHBERG:
        family = benjamini_hochberg(family)
    return [None if p is None else q for p, q in zip(p_values, family, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979, Scandinavian Journal of Statistics 6:65."""
    result = [1.0] * len(p_values)
    least = 0.0
    for rank, index in enumerate(_ascending(p_values)):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - rank)))
        result[index] = least
    return result


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini & Hochberg 1995, JRSS B 57:289."""
    result = [1.0] * len(p_values)
    most = 1.0
    for rank, index in reversed(list(enumerate(_ascending(p_values), 1))):
        most = min(most, p_values[index] * len(p_values) / rank)
        result[index] = most
    return result


def _ascending(p_values: Sequence[float]) -> list[int]:
    return sorted(range(len(p_values)), key=p_values.__getitem__)
