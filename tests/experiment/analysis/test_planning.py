from __future__ import annotations

from typing import Any

import pytest

from neuroweaver.experiment.analysis.planning import planned
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.v1 import experiment_pb2 as pb

FIXED = pb.INFERENCE_METHOD_FIXED_HORIZON


def request(**fields: Any) -> pb.PlanExperimentRequest:
    base: dict[str, Any] = {
        "mean": pb.MeanBaseline(mean=10, std_dev=1),
        "effect": pb.EffectSize(absolute=0.5),
        "method": FIXED,
    }
    if fields.keys() & {"proportion", "ratio"}:
        del base["mean"]
    return pb.PlanExperimentRequest(**base | fields)


def test_the_textbook_sample_size_of_two_means() -> None:
    """Cohen's d of 0.5 with a power of 0.8 takes 64 a group (Cohen 1988, table 2.4.1)."""
    found = planned(request())
    assert list(found.units_per_arm) == [64, 64]
    assert found.total_units == 128
    assert found.power == pytest.approx(0.8, abs=0.01)
    assert found.relative_effect == pytest.approx(0.05)
    assert not found.HasField("days")


def test_the_always_valid_method_needs_more() -> None:
    assert planned(request(method=pb.INFERENCE_METHOD_ALWAYS_VALID)).total_units > 128


def test_days_follow_from_pace_and_coverage() -> None:
    found = planned(request(units_per_day=64, coverage=0.5))
    assert found.days == pytest.approx(4)
    assert found.curve[-1].days == pytest.approx(4)
    assert found.curve[0].detectable_effect > found.curve[-1].detectable_effect
    assert found.curve[-1].detectable_effect == pytest.approx(0.5, rel=0.01)


def test_units_follow_the_weights_and_the_level_the_treatments() -> None:
    found = planned(request(weights=[0.5, 0.25, 0.25]))
    control, *treatments = found.units_per_arm
    assert treatments == [pytest.approx(control / 2, abs=1)] * 2
    single = planned(request(weights=[0.5, 0.25, 0.25], comparisons=1))
    assert single.total_units < found.total_units


def test_an_effect_or_a_power_is_what_comes_out() -> None:
    found = planned(pb.PlanExperimentRequest(mean=request().mean, units_per_arm=64, method=FIXED))
    assert found.absolute_effect == pytest.approx(0.5, rel=0.01)
    assert planned(request(units_per_arm=17)).power == pytest.approx(0.29, abs=0.01)  # Cohen's table 2.3.5


def test_a_share_and_a_relative_effect() -> None:
    """10 % against 12 %: 3,841 an arm with the pooled variance (Fleiss 1981, without continuity)."""
    found = planned(request(proportion=pb.ProportionBaseline(rate=0.10), effect=pb.EffectSize(relative=0.2)))
    assert found.absolute_effect == pytest.approx(0.02)
    assert found.units_per_arm[0] == pytest.approx(3841, abs=2)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"weights": [0.5, 0.6]}, "weights"),
        (
            {"mean": pb.MeanBaseline(mean=0, std_dev=1), "effect": pb.EffectSize(relative=0.1)},
            "effect.relative",
        ),
        ({"effect": pb.EffectSize(absolute=1e-300)}, "effect"),
        ({"proportion": pb.ProportionBaseline(rate=0.5), "effect": pb.EffectSize(absolute=0.6)}, "effect"),
        ({"ratio": pb.RatioBaseline(numerator_mean=1, denominator_mean=1)}, "ratio"),
        ({"ratio": pb.RatioBaseline(numerator_std_dev=1, denominator_mean=5e-324)}, "ratio"),
        ({"ratio": pb.RatioBaseline(numerator_std_dev=1e308, denominator_mean=1)}, "ratio"),
    ],
)
def test_a_plan_that_is_impossible_names_the_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        planned(request(**fields))
    assert caught.value.violations[0][0] == field
