from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import pytest

from neuroweaver.mesh.wire.clock import SteadyClock, brought_back, from_microseconds, microseconds, timestamp
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


class System:
    """A machine's two clocks, of which one can be set."""

    def __init__(self) -> None:
        self.now = MOMENT
        self.elapsed = 0.0

    def pass_(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.elapsed += seconds


def test_a_leap_that_is_taken_back_soon_never_was():
    system = System()
    clock = SteadyClock(lambda: system.now, lambda: system.elapsed)
    system.pass_(5)
    assert clock() == MOMENT + timedelta(seconds=5)
    system.now += timedelta(days=3653)
    for _ in range(9):
        system.pass_(60)
        clock()
    assert clock() == MOMENT + timedelta(seconds=545)
    system.now -= timedelta(days=3653)
    system.pass_(1)
    assert clock() == system.now == MOMENT + timedelta(seconds=546)


@pytest.mark.parametrize("days", [3653, -3653])
def test_a_leap_that_lasts_is_followed(days):
    system = System()
    clock = SteadyClock(lambda: system.now, lambda: system.elapsed)
    system.now += timedelta(days=days)
    assert clock() == MOMENT
    system.pass_(599)
    assert clock() == MOMENT + timedelta(seconds=599)
    system.pass_(2)
    assert clock() == system.now
    system.pass_(1)
    assert clock() == system.now


def test_small_corrections_and_long_sleep_are_no_leaps():
    system = System()
    clock = SteadyClock(lambda: system.now, lambda: system.elapsed)
    for seconds in (50, -50, 30):
        system.now += timedelta(seconds=seconds)
        assert clock() == system.now
    system.pass_(30 * 86_400)
    assert clock() == system.now


@dataclass(frozen=True)
class Record:
    at: datetime
    name: str = "n"
    parts: tuple[Record, ...] = ()
    since: dict[str, datetime] | None = None


def test_a_record_without_moments_ahead_is_left_as_it_is():
    record = Record(MOMENT, parts=(Record(MOMENT + timedelta(seconds=30)),), since={"a": MOMENT})
    assert brought_back(record, MOMENT) is record


def test_moments_ahead_are_brought_back_wherever_they_stand():
    later = MOMENT + timedelta(days=3653)
    record = Record(MOMENT, parts=(Record(MOMENT), Record(later)), since={"a": later, "b": MOMENT})
    assert brought_back(record, MOMENT) == Record(
        MOMENT, parts=(Record(MOMENT), Record(MOMENT)), since={"a": MOMENT, "b": MOMENT}
    )
