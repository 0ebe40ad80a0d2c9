from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from neuroweaver.mesh.wire.clock import from_microseconds, microseconds, timestamp
from neuroweaver.v1 import registry_pb2

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)


def test_a_moment_is_its_microseconds_in_any_time_zone():
    there = MOMENT.astimezone(timezone(timedelta(hours=-7)))
    assert from_microseconds(microseconds(there)) == MOMENT
    with pytest.raises(TypeError):
        microseconds(MOMENT.replace(tzinfo=None))


def test_a_timestamp_is_the_same_moment_and_none_leaves_the_field_unset():
    there = MOMENT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    made = timestamp(there)
    assert made is not None
    assert made.ToDatetime(UTC) == MOMENT
    assert not registry_pb2.Model(create_time=timestamp(None)).HasField("create_time")
