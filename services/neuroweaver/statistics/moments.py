"""What the statistics need to know of a variant's units: sums that units can enter, leave and change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from neuroweaver.statistics import double_double as dd

# Values lie within this, and below the other count as 0, so that no square of a quotient of sums leaves the
# doubles.
LARGEST: Final = 1e30
_SMALLEST: Final = 1e-30
# Values whose standard deviation is below 1e-12 of their size differ by rounding alone.
_ROUNDING: Final = 1e-24


@dataclass(frozen=True)
class Moments:
    """Number, sums and sums of products over units of one or more columns of values.

    A unit's row is its totals, such as (numerator, denominator, covariate). Since all of these are sums, a
    unit that changes is `moments - Moments.of([old]) + Moments.of([new])`, parts merge by `+` in any order,
    and a difference of Moments is itself one, to be added elsewhere.

    The sums are kept as pairs of doubles: after k changes each is within k * 2**-104 of the largest sum of
    absolute terms it ever held. A variance is thus good to 1e-9 after 1e6 changes while the values, and
    whatever passed through in between, are up to 1e8 times larger than their standard deviation. (Welford's
    recurrence run backwards loses a digit for every digit by which the value that leaves is larger.)

    high, low: the sums of the columns, then of the products of columns i <= j, row by row.
    """

    n: int
    columns: int
    high: tuple[float, ...]
    low: tuple[float, ...]

    @classmethod
    def zero(cls, columns: int) -> Moments:
        zeros = (0.0,) * _size(columns)
        return cls(0, columns, zeros, zeros)

    @classmethod
    def of(cls, rows: npt.ArrayLike) -> Moments:
        """rows: (units, columns), or (units,) of a single column. ValueError beyond LARGEST, or for NaN."""
        values = usable(rows)
        if values.ndim == 1:
            values = values[:, None]
        units, columns = values.shape
        if not units:
            return cls.zero(columns)
        left, right = np.triu_indices(columns)
        products, errors = dd.two_product(values[:, left], values[:, right])
        high = np.concatenate((values, products), axis=1)
        low = np.concatenate((np.zeros_like(values), errors), axis=1)
        high, low = dd.total(high, low)
        return cls(units, columns, tuple(high.tolist()), tuple(low.tolist()))

    @classmethod
    def from_floats(cls, columns: int, floats: Sequence[float]) -> Moments:
        """What `to_floats` gave. ValueError if these are not as many as so many columns have."""
        size = _size(columns)
        if len(floats) != 1 + 2 * size:
            raise ValueError(f"{columns} columns have {1 + 2 * size} numbers, not {len(floats)}")
        return cls(int(floats[0]), columns, tuple(floats[1 : 1 + size]), tuple(floats[1 + size :]))

    def to_floats(self) -> list[float]:
        """The number of units, then the sums, then their low parts; exact up to 2**53 units."""
        return [float(self.n), *self.high, *self.low]

    def __add__(self, other: Moments) -> Moments:
        if self.columns != other.columns:
            raise ValueError(f"{self.columns} columns and {other.columns} columns do not add up")
        sums = [
            dd.add((a, b), (c, d))
            for a, b, c, d in zip(self.high, self.low, other.high, other.low, strict=True)
        ]
        high, low = zip(*sums, strict=True)
        return Moments(self.n + other.n, self.columns, high, low)

    def __sub__(self, other: Moments) -> Moments:
        minus = tuple(-a for a in other.high), tuple(-a for a in other.low)
        return self + Moments(-other.n, other.columns, *minus)

    def sum(self, column: int = 0) -> float:
        return self.high[column]

    def squares(self, column: int = 0) -> float:
        """Sum of the squares, not of deviations."""
        return self.high[self._product(column, column)]

    def mean(self, column: int = 0) -> float:
        return self.high[column] / self.n

    def m2(self, column: int = 0) -> float:
        """Sum of squared deviations from the mean; 0 if the values differ by rounding alone."""
        index = self._product(column, column)
        squares = self.high[index], self.low[index]
        deviations = self._deviations(column, column)
        return deviations if deviations > _ROUNDING * squares[0] else 0.0

    def variance(self, column: int = 0) -> float:
        return self.m2(column) / (self.n - 1)

    def covariances(self) -> npt.NDArray[np.float64]:
        """(columns, columns), of units, with n - 1. A column that never varies has none with any other."""
        return self.comoments() / (self.n - 1)

    def comoments(self) -> npt.NDArray[np.float64]:
        """Sums of products of deviations, (columns, columns)."""
        matrix = np.zeros((self.columns, self.columns))
        for i in range(self.columns):
            matrix[i, i] = self.m2(i)
        for i in range(self.columns):
            for j in range(i + 1, self.columns):
                if matrix[i, i] and matrix[j, j]:
                    matrix[i, j] = matrix[j, i] = self._deviations(i, j)
        return matrix

    def chosen(self, places: Sequence[int]) -> Moments:
        """The same units with some of the columns, in this order; each once."""
        sums = list(places)
        pairs = [(min(i, j), max(i, j)) for at, i in enumerate(places) for j in places[at:]]
        indexes = sums + [self._product(i, j) for i, j in pairs]
        high, low = (tuple(values[index] for index in indexes) for values in (self.high, self.low))
        return Moments(self.n, len(sums), high, low)

    def with_constants(self, values: Sequence[float]) -> Moments:
        """The same units with further columns, in each of which all have the same value."""
        sums = [(self.high[i], self.low[i]) for i in range(self.columns)]
        sums += [dd.two_product(float(self.n), value) for value in values]
        columns = len(sums)
        products: list[Any] = []
        for i in range(columns):
            for j in range(i, columns):
                if j < self.columns:
                    index = self._product(i, j)
                    products.append((self.high[index], self.low[index]))
                else:
                    products.append(dd.multiply(sums[i], (values[j - self.columns], 0.0)))
        high, low = zip(*sums, *products, strict=True)
        return Moments(self.n, columns, high, low)

    def _deviations(self, i: int, j: int) -> float:
        index = self._product(i, j)
        product = dd.multiply((self.high[i], self.low[i]), (self.high[j], self.low[j]))
        expected = dd.divide(product, float(self.n))
        return float(dd.add((self.high[index], self.low[index]), dd.negative(expected))[0])

    def _product(self, i: int, j: int) -> int:
        return self.columns + i * self.columns - i * (i - 1) // 2 + (j - i)


def usable(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """As floats, any shape; next to nothing as 0. ValueError for NaN and for what is beyond LARGEST."""
    array = np.asarray(values, dtype=np.float64)
    size = np.abs(array)
    if not np.all(size <= LARGEST):
        raise ValueError(f"a value is not a number within {LARGEST:g}")
    return np.where(size < _SMALLEST, 0.0, array)


def merged(parts: Sequence[Moments], columns: int) -> Moments:
    """All parts together; none: no units."""
    return sum(parts, Moments.zero(columns))


def standard_error(moments: Moments, column: int = 0) -> float:
    """Of the column's mean; at least two units."""
    return math.sqrt(moments.variance(column) / moments.n)


def _size(columns: int) -> int:
    return columns + columns * (columns + 1) // 2
