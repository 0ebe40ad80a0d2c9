"""Lines of a pod's log, as the API server sends them with timestamps, and where to go on after one. Pure.

A cursor is the time of a line and its place among the lines of that very time, such as
`2026-01-02T03:04:05.123456789Z#2`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from neuroweaver.deployer.domain.backend import Line
from neuroweaver.deployer.model_servers import logs

_STAMPED: Final = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)) ?(?P<text>.*)", re.DOTALL
)


def lines(text: str, replica_id: str, revision: int, after: str = "") -> Iterator[Line]:
    """Those after the cursor `after`. A line without a timestamp is none of the log."""
    seen_time, _, seen_count = after.partition("#")
    last, count = "", 0
    for raw in text.split("\n"):
        found = _STAMPED.fullmatch(raw.rstrip("\r"))
        if found is None:
            continue
        stamp = _sortable(found["time"])
        count = count + 1 if stamp == last else 1
        last = stamp
        if after and (stamp, count) <= (seen_time, int(seen_count or 0)):
            continue
        message = logs.cut(found["text"])
        yield Line(
            replica_id=replica_id,
            revision=revision,
            time=_time(stamp),
            message=message,
            level=logs.level(message),
            cursor=f"{stamp}#{count}",
        )


def since_time(cursor: str) -> str:
    """For `sinceTime`, which knows whole seconds only: the beginning of the cursor's second."""
    return f"{cursor[:19]}Z"


def _sortable(stamp: str) -> str:
    """In UTC with nine decimals, so that order of text is order of time. Others than UTC are not sent by
    kubelets.
    """
    whole, _, rest = stamp.partition(".")
    if not rest:
        return f"{stamp[:19]}.000000000Z"
    decimals = re.match(r"\d+", rest)
    return f"{whole}.{(decimals[0] if decimals else '').ljust(9, '0')}Z"


def _time(stamp: str) -> datetime:
    return datetime.fromisoformat(f"{stamp[:26]}+00:00")  # Python knows microseconds
