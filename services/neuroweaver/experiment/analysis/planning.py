"""A plan of an experiment: how many units, how long, and what it can find."""

from __future__ import annotations

import math
from typing import Final

from neuroweaver.experiment.domain.specification import CONFIDENCE, WEIGHT_SUM_TOLERANCE
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.mesh.wire.messages import message_of
from neuroweaver.statistics.baseline import Baseline, MeanBaseline, ProportionBaseline, RatioBaseline
from neuroweaver.statistics.power import Design, plan
from neuroweaver.v1 import experiment_pb2 as pb

POWER: Final = 0.8


def planned(request: pb.PlanExperimentRequest) -> pb.PlanExperimentResponse:
    """Raises InvalidArgument naming the field that makes a plan impossible."""
    weights = tuple(request.weights) or (0.5, 0.5)
    if abs(sum(weights) - 1) > WEIGHT_SUM_TOLERANCE:
        raise InvalidArgument("weights", f"must sum to 1, not {sum(weights):g}")
    baseline = _baseline(request)
    design = Design(
        baseline=baseline,
        confidence=request.confidence_level if request.HasField("confidence_level") else CONFIDENCE,
        is_non_inferiority=request.hypothesis == pb.PLAN_HYPOTHESIS_NON_INFERIORITY,
        is_always_valid=request.method != pb.INFERENCE_METHOD_FIXED_HORIZON,
        weights=weights,
        comparisons=request.comparisons if request.HasField("comparisons") else len(weights) - 1,
        covariate_correlation=request.covariate_correlation,
    )
    coverage = request.coverage if request.HasField("coverage") else 1.0
    effect = _effect(request, baseline)
    try:
        computed = plan(
            design,
            effect=effect,
            units=request.units_per_arm if request.HasField("units_per_arm") else None,
            power=request.power if request.HasField("power") else POWER,
            units_per_day=request.units_per_day * coverage if request.HasField("units_per_day") else None,
        )
    except (ValueError, ArithmeticError) as error:
        raise _refused("units_per_arm" if effect is None else "effect", error) from error
    relative = computed.relative_effect
    return message_of(
        pb.PlanExperimentResponse,
        computed,
        units_per_arm=computed.units,
        total_units=sum(computed.units),
        absolute_effect=computed.effect,
        relative_effect=relative if relative is not None and math.isfinite(relative) else None,
        curve=[message_of(pb.PlanPoint, point, units_per_arm=point.units) for point in computed.curve],
    )


def _baseline(request: pb.PlanExperimentRequest) -> Baseline:
    kind = request.WhichOneof("baseline")
    if kind == "mean":
        return MeanBaseline(request.mean.mean, request.mean.std_dev)
    if kind == "proportion":
        return ProportionBaseline(request.proportion.rate)
    ratio = request.ratio
    baseline = RatioBaseline(
        ratio.numerator_mean,
        ratio.numerator_std_dev,
        ratio.denominator_mean,
        ratio.denominator_std_dev,
        ratio.correlation,
    )
    try:
        baseline.variance()
    except (ValueError, ArithmeticError) as error:
        raise _refused("ratio", error) from error
    return baseline


def _refused(field: str, error: Exception) -> InvalidArgument:
    is_said = isinstance(error, ValueError)
    return InvalidArgument(field, str(error) if is_said else "is beyond what can be computed")


def _effect(request: pb.PlanExperimentRequest, baseline: Baseline) -> float | None:
    """In the metric's unit; None if it is what is asked."""
    if not request.HasField("effect"):
        return None
    if not request.effect.HasField("relative"):
        return request.effect.absolute
    if not baseline.value:
        raise InvalidArgument("effect.relative", "the baseline is 0: give the effect in the metric's unit")
    return request.effect.relative * abs(baseline.value)
