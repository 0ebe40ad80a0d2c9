"""Numbers of about 31 digits, as pairs (high, low) of doubles of which the low one holds the rounding of
the high.

Dekker 1971, Numerische Mathematik 18:224. Every function takes floats or numpy arrays alike. An addition or a
product is exact to 2**-104 of its result, as long as nothing overflows or falls below 1e-290.
"""

from __future__ import annotations

from typing import Any, Final

# Splits a double into two halves of 26 bits (Veltkamp).
_SPLITTER: Final = 134217729.0


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """The sum, without any error."""
    high = a + b
    part = high - a
    return high, (a - (high - part)) + (b - part)


def two_product(a: Any, b: Any) -> tuple[Any, Any]:
    """The product, without any error."""
    high = a * b
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    return high, ((a_high * b_high - high) + a_high * b_low + a_low * b_high) + a_low * b_low


def add(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
    high, error = two_sum(a[0], b[0])
    low, rest = two_sum(a[1], b[1])
    high, error = _normal(high, error + low)
    return _normal(high, error + rest)


def negative(a: tuple[Any, Any]) -> tuple[Any, Any]:
    return -a[0], -a[1]


def multiply(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
    high, error = two_product(a[0], b[0])
    return _normal(high, error + (a[0] * b[1] + a[1] * b[0]))


def divide(a: tuple[Any, Any], divisor: Any) -> tuple[Any, Any]:
    high = a[0] / divisor
    product, error = two_product(high, divisor)
    return _normal(high, ((a[0] - product) - error + a[1]) / divisor)


def total(high: Any, low: Any) -> tuple[Any, Any]:
    """The sums over the first axis of two arrays of the same shape (m, ...), m at least 1; by halves."""
    while len(high) > 1:
        half = len(high) // 2
        rest = slice(2 * half, None)
        odd = high[rest], low[rest]
        high, low = add((high[:half], low[:half]), (high[half : 2 * half], low[half : 2 * half]))
        if len(odd[0]):
            first = add((high[:1], low[:1]), odd)
            high[:1], low[:1] = first
    return high[0], low[0]


def _normal(high: Any, low: Any) -> tuple[Any, Any]:
    result = high + low
    return result, low - (result - high)


def _halves(a: Any) -> tuple[Any, Any]:
    scaled = _SPLITTER * a
    high = scaled - (scaled - a)
    return high, a - high
