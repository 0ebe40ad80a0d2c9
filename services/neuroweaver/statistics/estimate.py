"""What an estimate is made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """Whether an estimate could be made."""

    OK = "ok"
    NOT_ENOUGH_DATA = "not_enough_data"
    CONSTANT = "constant"
    """All values are equal: there is a mean and no interval."""
    ZERO_BASELINE = "zero_baseline"
    """The control's value is 0, or its interval holds 0: there is no relative effect."""


@dataclass(frozen=True)
class Interval:
    lower: float
    upper: float
    confidence: float


@dataclass(frozen=True)
class Inference:
    """One method's view of an effect. relative: None where there is no such interval.

    absolute, in the metric's unit, holds 0 if and only if p_value, two-sided, is above 1 - confidence; so
    does relative, as a share of the size of the control's value.
    """

    absolute: Interval
    relative: Interval | None
    p_value: float


@dataclass(frozen=True)
class Bound:
    """What an effect is tested against: an amount, or a share of the size of the control's value."""

    value: float
    is_relative: bool = False


ZERO = Bound(0.0)
