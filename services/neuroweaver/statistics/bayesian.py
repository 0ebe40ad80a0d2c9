"""The Bayesian view of an effect, in closed form from normal posteriors. It is valid at any look in its own
sense, bounds no error rate, and makes no verdict.
"""

from __future__ import annotations

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
    relative = effect.relative_with_error(clear_of_zero=2)
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


def _updated(likelihood: tuple[float, float], mean: float, std_dev: float) -> tuple[float, float]:
    precision, prior_precision = likelihood[1] ** -2, std_dev**-2
    total = precision + prior_precision
    return (precision * likelihood[0] + prior_precision * mean) / total, total**-0.5


def _credible(normal: tuple[float, float], confidence: float) -> Interval:
    half = normal_quantile((1 - confidence) / 2) * normal[1]
    return Interval(normal[0] - half, normal[0] + half, confidence)
