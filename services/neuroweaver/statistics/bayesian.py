"""The Bayesian view of an effect, in closed form from normal posteriors. It is valid at any look in its own
sense, bounds no error rate, and makes no verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from neuroweaver.statistics.distributions import normal_density, normal_quantile, normal_tail
from neuroweaver.statistics.effect import Effect
from neuroweaver.statistics.estimate import Interval


@dataclass(frozen=True)
class Prior:
    """Normal, on the relative effect. std_dev: None for a flat one."""

    mean: float = 0.0
    std_dev: float | None = None


@dataclass(frozen=True)
class Posterior:
    """expected_loss: in the metric's unit, what choosing the treatment loses on average, should it be worse.
    relative: credible interval; None without a relative effect.
    """

    chance_to_beat_control: float
    expected_loss: float
    relative: Interval | None


def posterior(effect: Effect, confidence: float, prior: Prior, *, higher_is_better: bool) -> Posterior | None:
    """None if the effect is constant, or if the prior is on a relative effect that there is none of.

    With a flat prior the posterior of the effect in the metric's unit is normal around the estimate. With a
    normal prior it is that of the relative effect, whose likelihood is the normal one of the delta method
    (GrowthBook's choice too), and the loss is scaled by the control's observed value.
    """
    if effect.is_constant:
        return None
    sign = 1 if higher_is_better else -1
    relative = _relative(effect)
    if prior.std_dev is None:
        mean, std_dev, scale = effect.absolute, effect.std_error, 1.0
    elif relative is None:
        return None
    else:
        mean, std_dev = relative = _updated(relative, prior.mean, prior.std_dev)
        scale = abs(effect.baseline)
    z = sign * mean / std_dev
    return Posterior(
        chance_to_beat_control=normal_tail(-z),
        expected_loss=max(0.0, scale * std_dev * (normal_density(z) - z * normal_tail(z))),
        relative=_credible(relative, confidence) if relative is not None else None,
    )


def _relative(effect: Effect) -> tuple[float, float] | None:
    """Mean and standard deviation by the delta method; None if the control's value is within two standard
    errors of 0, where a quotient is nothing like normal.
    """
    share, size = effect.relative, abs(effect.baseline)
    if share is None or size <= 2 * math.sqrt(effect.baseline_variance):
        return None
    covariance = math.copysign(1.0, effect.baseline) * effect.covariance
    variance = effect.variance / size**2 - 2 * share * covariance / size**2
    variance += share**2 * effect.baseline_variance / size**2
    return (share, math.sqrt(variance)) if variance > 0 else None


def _updated(likelihood: tuple[float, float], mean: float, std_dev: float) -> tuple[float, float]:
    precision, prior_precision = likelihood[1] ** -2, std_dev**-2
    total = precision + prior_precision
    return (precision * likelihood[0] + prior_precision * mean) / total, total**-0.5


def _credible(normal: tuple[float, float], confidence: float) -> Interval:
    half = normal_quantile((1 - confidence) / 2) * normal[1]
    return Interval(normal[0] - half, normal[0] + half, confidence)
