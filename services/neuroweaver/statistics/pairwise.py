"""Win rates of side-by-side judgements on the same prompts."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from operator import add
from typing import Final

from neuroweaver.statistics import confidence_sequence
from neuroweaver.statistics.bisection import threshold
from neuroweaver.statistics.distributions import normal_quantile, normal_tail
from neuroweaver.statistics.effect import Effect
from neuroweaver.statistics.estimate import Interval

# Standard errors that stand for certainty.
_CERTAIN: Final = 40.0


@dataclass(frozen=True)
class Judgements:
    """Of a candidate against the baseline, each on a prompt of its own: several judgements of one prompt
    are not independent and must be merged into one first.

    A win or a loss needs both orders of the answers; anything else that has both is a tie. flips: the ties in
    which the orders contradict each other. missing: judgements without both orders, which count for nothing.
    """

    wins: int = 0
    ties: int = 0
    losses: int = 0
    flips: int = 0
    missing: int = 0

    @property
    def count(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def win_rate(self) -> float | None:
        """A tie counts half; None without judgements."""
        return (self.wins + self.ties / 2) / self.count if self.count else None

    def __add__(self, other: Judgements) -> Judgements:
        return Judgements(*map(add, astuple(self), astuple(other)))


def interval(judgements: Judgements, confidence: float) -> Interval | None:
    """Of the win rate, for a single look; None without judgements.

    Win rate = 1/2 + (share won - share lost) / 2: the difference of two shares of the same prompts, whose
    score interval is Tango's (1998, Statistics in Medicine 17:891). Unlike Wilson's on the win rate itself
    it knows that a tie is worth half for certain, and it stays honest with few or no wins.
    """
    if not judgements.count:
        return None
    critical = normal_quantile((1 - confidence) / 2)
    lower, upper = _reached(judgements, critical), _reached(judgements, -critical)
    return Interval((1 + lower) / 2, (1 + upper) / 2, confidence)


def p_value(judgements: Judgements) -> float:
    """Two-sided, of as many wins as losses: McNemar's (1947), the score test that `interval` inverts; 1
    without any win or loss.
    """
    return math.erfc(abs(_score(judgements, 0.0)) / math.sqrt(2))


def p_one_sided(judgements: Judgements, bound: float = 0.0, *, above: bool = True) -> float:
    """Small if the win rate is shown to lie above (or below) 1/2 + bound; bound: in (-1/2, 1/2)."""
    score = _score(judgements, 2 * bound)
    return normal_tail(score if above else -score)


def effect(judgements: Judgements) -> Effect | None:
    """The win rate minus 1/2, for the sequential tests and everything else that asks for an effect; there
    is no relative one. None without judgements.

    The variance counts one win and one loss more than there were (Bonett & Price 2012, Journal of
    Educational and Behavioral Statistics 37:479), so that ties or wins alone are not taken for certainty.
    """
    if not judgements.count:
        return None
    units = judgements.count
    won, lost = (judgements.wins + 1) / (units + 2), (judgements.losses + 1) / (units + 2)
    return Effect(
        absolute=(judgements.wins - judgements.losses) / (2 * units),
        variance=(won + lost - (won - lost) ** 2) / (4 * units),
        baseline=0.0,
        baseline_variance=0.0,
        covariance=0.0,
        units=units,
        degrees_of_freedom=max(1, units - 1),
    )


def always_valid_interval(
    judgements: Judgements, confidence: float, planned_judgements: float
) -> Interval | None:
    """Of the win rate, however often one looks; None without judgements."""
    normal = effect(judgements)
    inference = confidence_sequence.infer(normal, confidence, planned_judgements) if normal else None
    if inference is None:
        return None
    difference = inference.absolute
    return Interval(max(0.0, 0.5 + difference.lower), min(1.0, 0.5 + difference.upper), confidence)


def _score(judgements: Judgements, difference: float) -> float:
    """How many standard errors the difference of shares is above the one given (Tango 1998)."""
    wins, losses, count = judgements.wins, judgements.losses, judgements.count
    if not count:
        return 0.0
    # The likeliest share of losses if the difference is the one given.
    linear = (2 * count - wins + losses) * difference - wins - losses
    constant = -losses * difference * (1 - difference)
    lost = (math.sqrt(max(0.0, linear**2 - 8 * count * constant)) - linear) / (4 * count)
    variance = count * (2 * lost + difference * (1 - difference))
    distance = wins - losses - count * difference
    if variance <= 1e-12 * count:
        # Nothing but the observed difference is possible.
        return math.copysign(_CERTAIN, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _reached(judgements: Judgements, score: float) -> float:
    """The difference at which the score is the one given; falls as the difference rises."""
    return threshold(lambda difference: _score(judgements, difference) <= score, -1.0, 1.0)
