"""The time, in UTC, which leaps only where the system's clock leapt to stay."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

_LOG: Final = logging.getLogger("neuroweaver.clock")

T = TypeVar("T")
Clock = Callable[[], datetime]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


# How far two clocks of one mesh may be apart, and how far one is corrected without a word.
SKEW: Final = timedelta(minutes=1)
# Further ahead than what is yet to come is noted: a clock that ran ahead has left it.
AHEAD: Final = timedelta(hours=1)
_LEAP_LASTS_S: Final = 600.0
# Goes on while the machine sleeps, where the system has such a clock.
_ELAPSED: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed_s() -> float:
    """Seconds since some moment, by a clock that nobody sets."""
    return time.clock_gettime(_ELAPSED)


class SteadyClock:
    """The system's time; when that leaps, the time as it would have gone on, until the leap has lasted.

    So a clock that is set wrong and corrected soon moves no schedule and drops nothing that is young. One
    that a process finds wrong at its start it cannot know.
    """

    def __init__(self, system: Clock, elapsed: Callable[[], float] = elapsed_s) -> None:
        self._system = system
        self._elapsed = elapsed
        self._followed = system(), elapsed()
        self._leapt_at: float | None = None

    def __call__(self) -> datetime:
        now, elapsed = self._system(), self._elapsed()
        last, at = self._followed
        expected = last + timedelta(seconds=elapsed - at)
        if abs(now - expected) > SKEW:
            leapt_at = self._leapt_at
            if leapt_at is None:
                leapt_at = self._leapt_at = elapsed
                _LOG.warning("the system's clock leapt", extra={"by_s": (now - expected).total_seconds()})
            if elapsed - leapt_at < _LEAP_LASTS_S:
                return expected
        self._followed, self._leapt_at = (now, elapsed), None
        return now


_now: Final = SteadyClock(lambda: datetime.now(UTC))


def utc_now() -> datetime:
    """Now, aware and in UTC; see `SteadyClock`."""
    return _now()


def brought_back(record: T, now: datetime) -> T:
    """A frozen dataclass without moments far ahead, left by a clock that was set back; itself if it has none.

    What waits for a time to pass since such a moment would wait for years.
    """
    changes = {field.name: _brought_back(getattr(record, field.name), now) for field in fields(record)}  # type: ignore[arg-type]
    changes = {name: value for name, value in changes.items() if value is not getattr(record, name)}
    return replace(record, **changes) if changes else record  # type: ignore[type-var]


def _brought_back(value: Any, now: datetime) -> Any:
    if isinstance(value, datetime):
        return now if value > now + AHEAD else value
    if isinstance(value, dict):
        moved_values = {key: _brought_back(each, now) for key, each in value.items()}
        return moved_values if any(moved_values[key] is not value[key] for key in value) else value
    if isinstance(value, tuple):
        moved = tuple(_brought_back(each, now) for each in value)
        return moved if any(one is not other for one, other in zip(moved, value, strict=True)) else value
    return brought_back(value, now) if is_dataclass(value) and not isinstance(value, type) else value


def microseconds(moment: datetime) -> int:
    """Since 1970 UTC. Raises TypeError for a moment without a time zone."""
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(count: int) -> datetime:
    """Raises OverflowError beyond the calendar."""
    return _EPOCH + count * _MICROSECOND


def timestamp(moment: datetime | None) -> Timestamp | None:
    """As a message; None, which leaves a field unset, for no moment."""
    if moment is None:
        return None
    made = Timestamp()
    made.FromDatetime(moment)
    return made
