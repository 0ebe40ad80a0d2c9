"""The time, in UTC. A class of its own so that a test can say what time it is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

Clock = Callable[[], datetime]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def utc_now() -> datetime:
    """Now, aware and in UTC."""
    return datetime.now(UTC)


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
