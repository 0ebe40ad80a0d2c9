from __future__ import annotations

from datetime import UTC, datetime

import pytest

from experiment.serving import spec
from neuroweaver.experiment.domain.specification import MAX_TARGETING_VALUES, completed
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.v1 import experiment_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)


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
    assert completed(targeted(MAX_TARGETING_VALUES), NOW)
    with pytest.raises(InvalidArgument, match=r"spec\.targeting: holds 2001 values; at most 2000"):
        completed(targeted(MAX_TARGETING_VALUES + 1), NOW)
