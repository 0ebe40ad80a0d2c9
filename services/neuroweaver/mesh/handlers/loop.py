"""Loops that go on for as long as their service runs, whatever a turn of theirs meets.

    await repeat("supervisor", self._turn, POLL_S, wake=store.queue_changed)

A turn that fails is taken again, later and later. The log tells of it once, and once when it is over.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import grpc
from prometheus_client import Counter
from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.mesh.handlers.signals import Signal
from neuroweaver.mesh.wire.errors import Error, shortened
from neuroweaver.mesh.wire.status import describe

_LOG: Final = logging.getLogger("neuroweaver.loop")

FIRST_BACKOFF_S: Final = 1.0
MAX_BACKOFF_S: Final = 10.0
# What ran for so long before it failed had recovered from what it failed of before.
_RECOVERED_S: Final = 300.0
_MOST_CAUSES: Final = 8
_MAX_CAUSE: Final = 500

# What the world does to a turn; anything else is a fault of ours, and logged with its traceback.
_FORESEEN: Final = (SQLAlchemyError, OSError, Error, grpc.RpcError)

_FAILURES: Final = Counter(
    "neuroweaver_loop_failures", "Turns of a service's background loops that failed.", ("loop",)
)


class Outage:
    """Whether something that is tried again and again fails at present.

    loop: what it is, in logs and metrics. foreseen: further exceptions that are no fault of ours. where:
    further fields of the log's lines.
    """

    def __init__(
        self,
        loop: str,
        *,
        foreseen: tuple[type[Exception], ...] = (),
        max_backoff_s: float = MAX_BACKOFF_S,
        **where: Any,
    ) -> None:
        self.backoff_s = 0.0
        """How long to wait before the next attempt; 0 while the last one went well."""
        self._loop = loop
        self._foreseen = (*_FORESEEN, *foreseen)
        self._max_backoff_s = max_backoff_s
        self._where = where
        self._failures = 0
        self._causes: set[str] = set()

    @contextmanager
    def survived(self, *passing: type[Exception]) -> Iterator[None]:
        """Takes one attempt. What it raises is told and goes no further, but for `passing`."""
        begun = time.monotonic()
        try:
            yield
        except passing:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the loop goes on
            if time.monotonic() - begun > _RECOVERED_S:
                self.over()
            self.failed(error)
        else:
            self.over()

    def failed(self, error: Exception) -> None:
        _FAILURES.labels(self._loop).inc()
        longest_s = min(FIRST_BACKOFF_S * 2.0 ** min(self._failures, 16), self._max_backoff_s)
        self.backoff_s = longest_s * random.uniform(0.5, 1.0)
        self._failures += 1
        cause = _in_words(error)
        if cause in self._causes or len(self._causes) >= _MOST_CAUSES:
            return
        self._causes.add(cause)
        fields = {"loop": self._loop, "cause": cause, **self._where}
        if isinstance(error, self._foreseen):
            _LOG.warning("failed; it is tried until it succeeds", extra=fields)
        else:
            _LOG.error("failed; it is tried until it succeeds", extra=fields, exc_info=error)

    def over(self) -> None:
        """It went well."""
        if self._failures:
            _LOG.info("recovered", extra={"loop": self._loop, "failures": self._failures, **self._where})
            self.backoff_s, self._failures = 0.0, 0
            self._causes.clear()


class Outages:
    """Those of the several things that a loop cares for, none of which holds up the others."""

    def __init__(self, loop: str, *, max_backoff_s: float = MAX_BACKOFF_S) -> None:
        self._loop = loop
        self._max_backoff_s = max_backoff_s
        self._failing: dict[tuple[tuple[str, object], ...], Outage] = {}

    @property
    def backoff_s(self) -> float:
        """Until the first of those that fail is due again; 0 if none does."""
        return min((outage.backoff_s for outage in self._failing.values()), default=0.0)

    @contextmanager
    def survived(self, *passing: type[Exception], **where: Any) -> Iterator[None]:
        """As `Outage.survived`, for the thing at `where`."""
        key = tuple(where.items())
        outage = self._failing.get(key) or Outage(self._loop, max_backoff_s=self._max_backoff_s, **where)
        with outage.survived(*passing):
            yield
        if outage.backoff_s:
            self._failing[key] = outage
        else:
            self._failing.pop(key, None)


async def repeat(
    loop: str,
    turn: Callable[[], Awaitable[float | None]],
    period_s: float,
    *,
    wake: Signal | None = None,
    passing: tuple[type[Exception], ...] = (),
    outage: Outage | None = None,
) -> NoReturn:
    """Takes a turn again and again, until cancelled.

    turn: may return the seconds until the next one, instead of `period_s`. wake: begins it at once, but not
    after a failure. passing: what ends the loop. outage: where it is told otherwise than by the loop's name.
    """
    outage = outage or Outage(loop)
    wake = wake or Signal()
    while True:
        seen, delay_s = wake.count, None
        with outage.survived(*passing):
            delay_s = await turn()
        if outage.backoff_s:
            await asyncio.sleep(outage.backoff_s)
        else:
            await wake.wait(seen, period_s if delay_s is None else delay_s)


def _in_words(error: Exception) -> str:
    if isinstance(error, grpc.RpcError):
        return describe(error)
    origin = getattr(error, "orig", None) or error  # the driver's own, without the statement
    return shortened(" ".join(f"{type(origin).__name__}: {origin}".split()), _MAX_CAUSE)
