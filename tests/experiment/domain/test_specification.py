from __future__ import annotations

import pytest

from experiment.figures import START, experiment, metric
from experiment.serving import spec
from neuroweaver.experiment.domain import specification
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.v1 import experiment_pb2 as pb

CLICKS = pb.CountMetric(event_name="clicks")
BOTH_COUNTED = pb.RatioMetric(
    numerator=pb.EventSource(event_name="clicks", aggregation=pb.UNIT_AGGREGATION_COUNT),
    denominator=pb.EventSource(event_name="visits", aggregation=pb.UNIT_AGGREGATION_COUNT),
)


def caps(**fields):
    return {"winsorization": pb.Winsorization(**fields)}


def looking_back(seconds):
    return {"cuped": pb.Cuped(lookback={"seconds": seconds})}


@pytest.mark.parametrize(
    ("fields", "of_spec", "field", "words"),
    [
        (looking_back(10), {}, "cuped.lookback", r"reads no event.*`exposure_grace` \(10 s\)"),
        (looking_back(60), {"exposure_grace": {"seconds": 60}}, "cuped.lookback", "60 s"),
        (
            {"pairwise": pb.PairwiseMetric(event_name="better"), "conversion_window": {"seconds": 60}},
            {},
            "conversion_window",
            "leave it out",
        ),
        (
            caps(upper_value=9.0, calibration_units=500),
            {},
            "winsorization.calibration_units",
            "no effect on caps by values",
        ),
        ({"count": CLICKS} | caps(lower_value=0.0), {}, "winsorization.lower_value", "cuts nothing"),
        ({"count": CLICKS} | caps(upper_value=0.0), {}, "winsorization.upper_value", "must be above 0"),
        ({"ratio": BOTH_COUNTED} | caps(lower_value=-1.0), {}, "winsorization.lower_value", "cuts nothing"),
    ],
)
def test_what_could_never_have_an_effect_is_refused_by_name(fields, of_spec, field, words):
    made = spec(metrics=[metric(), metric("second", **fields)], **of_spec)
    with pytest.raises(InvalidArgument, match=words) as refused:
        specification.completed(made, START)
    assert f"spec.metrics[1].{field}" in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "of_spec"),
    [
        (looking_back(11), {}),
        (looking_back(1), {"exposure_grace": {"seconds": 0}}),
        (caps(lower_value=0.0), {}),
        ({"count": CLICKS} | caps(lower_value=1.0, upper_value=9.0), {}),
        (caps(upper_quantile=0.99, calibration_units=500), {}),
    ],
)
def test_what_can_have_one_is_taken(fields, of_spec):
    specification.completed(spec(metrics=[metric(**fields)], **of_spec), START)


@pytest.mark.parametrize("share", [0.25, 0.3])
def test_weights_that_cannot_move_are_refused(share):
    weights = dict.fromkeys(("control", "b", "c", "d"), 0.25)
    thompson = pb.ThompsonAllocation(min_weight=share)
    with pytest.raises(InvalidArgument, match=r"less than an equal share of 0\.25"):
        experiment(weights, thompson=thompson)


def targeted(values: int) -> pb.ExperimentSpec:
    """With so many values in all, spread over conditions."""
    made = spec()
    rule = made.targeting.add()
    for begin in range(0, values, 1000):
        condition = rule.conditions.add(attribute="city", operator=pb.TARGETING_OPERATOR_IN)
        for number in range(begin, min(begin + 1000, values)):
            condition.values.add(string_value=str(number))
    return made


def test_as_many_targeting_values_as_an_assignment_can_look_at_are_taken():
    assert specification.completed(targeted(specification.MAX_TARGETING_VALUES), START)
    with pytest.raises(InvalidArgument, match=r"spec\.targeting: holds 2001 values; at most 2000"):
        specification.completed(targeted(specification.MAX_TARGETING_VALUES + 1), START)
