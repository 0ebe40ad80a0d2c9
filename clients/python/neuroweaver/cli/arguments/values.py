"""Values as people type them: pairs, durations, moments."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from neuroweaver.cli.terminal.failures import BadInput

_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_AGO: Final = re.compile(r"(\d{1,6}) (second|minute|hour|day|week)s? ago")


def pair(text: str, option: str, form: str = "NAME=VALUE") -> tuple[str, str]:
    """Both sides of the first `=`. Raises BadInput."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise BadInput(f"{text!r} is not {form}", option)
    return name, value


def seconds_of(value: Any, option: str) -> float:
    """From `90s`, `1h30m`, `2d` or a plain number of seconds. Raises BadInput."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = str(value).strip()
    parts = _SPAN.findall(text)
    if not parts or "".join(map("".join, parts)) != text:
        raise BadInput(f"{value!r} is not a duration such as 30s, 5m or 1h30m", option)
    return sum(float(count) * _SECONDS[unit] for count, unit in parts)


def span(text: str, option: str) -> Duration | None:
    """None for an empty text. Raises BadInput."""
    if not text:
        return None
    duration = Duration()
    duration.FromMilliseconds(round(seconds_of(text, option) * 1000))
    return duration


def moment(text: str, option: str, now: datetime | None = None) -> Timestamp:
    """From an ISO time, local without a zone, or `2 days ago`. Raises BadInput."""
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago:
            time = (now or datetime.now(UTC)) - timedelta(**{f"{ago[2]}s": int(ago[1])})
        else:
            time = datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        message = f"{text!r} is not a time such as 2026-11-01T12:00:00Z or '2 days ago'"
        raise BadInput(message, option) from error
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
