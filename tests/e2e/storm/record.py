"""What callers saw in a storm, and what of it nobody has to put up with."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any

import grpc

OK = "OK"


@dataclass(frozen=True)
class Call:
    kind: str
    service: str
    begun: float
    ended: float
    code: str
    details: str = ""


@dataclass
class Outage:
    """A service is away, or what it stands on, and callers may be told so. ended: once it is healthy again."""

    cause: str
    services: frozenset[str]
    begun: float
    ended: float = inf

    def excuses(self, call: Call, grace_s: float) -> bool:
        return (
            call.service in self.services
            and call.begun < self.ended + grace_s
            and call.ended > self.begun - grace_s
        )


@dataclass
class Record:
    """All calls of the innocent, all outages, and what hostile clients were answered."""

    calls: list[Call] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    hostile: Counter[tuple[str, str]] = field(default_factory=Counter)
    died: list[str] = field(default_factory=list)
    """Services that ended by themselves."""
    gave_up: list[str] = field(default_factory=list)
    """Writers that were not answered for long, or were refused."""
    grace_s: float = 5.0
    """A client reconnects after at most so long, and a call that begins just before a fault ends with it."""

    @contextmanager
    def outage(self, cause: str, *services: str) -> Iterator[None]:
        outage = Outage(cause, frozenset(services), time.monotonic())
        self.outages.append(outage)
        try:
            yield
        finally:
            outage.ended = time.monotonic()

    async def call(self, kind: str, service: str, send: Callable[[], Awaitable[Any]]) -> Any:
        """The answer of one call, or None: it failed, and how is remembered."""
        begun = time.monotonic()
        try:
            answer = await send()
        except grpc.RpcError as error:
            self._add(kind, service, begun, error.code().name, error.details() or "")
            return None
        self._add(kind, service, begun, OK)
        return answer

    def answered(self, kind: str, service: str, begun: float, code: str, details: str = "") -> None:
        """A call over HTTP. code: OK, UNAVAILABLE, or the status."""
        self._add(kind, service, begun, code, details)

    def _add(self, kind: str, service: str, begun: float, code: str, details: str = "") -> None:
        self.calls.append(Call(kind, service, begun, time.monotonic(), code, details[:200]))

    @property
    def failed(self) -> list[Call]:
        return [call for call in self.calls if call.code != OK]

    def is_excused(self, call: Call) -> bool:
        return any(outage.excuses(call, self.grace_s) for outage in self.outages)

    def faults(self) -> list[str]:
        """What no caller has to put up with: other failures than UNAVAILABLE while something was away."""
        broken = Counter(
            f"{call.kind}: {call.code} {call.details}"
            for call in self.failed
            if not (call.code == "UNAVAILABLE" and self.is_excused(call))
        )
        internal = Counter(
            {
                f"hostile {kind}: {code}": number
                for (kind, code), number in self.hostile.items()
                if code in {"INTERNAL", "UNKNOWN", "500"}
            }
        )
        died = Counter(f"{service} ended by itself" for service in self.died)
        gave_up = Counter(f"a writer gave up: {why}" for why in self.gave_up)
        return [
            f"{number} times {what}" for what, number in (broken + internal + died + gave_up).most_common()
        ]

    def seconds(self, begun: float, ended: float) -> dict[str, list[float]]:
        """By kind, of the calls in that time that were answered and met no outage; ascending."""
        found: dict[str, list[float]] = {}
        for call in self.calls:
            if call.code == OK and begun <= call.begun and call.ended <= ended and not self.is_excused(call):
                found.setdefault(call.kind, []).append(call.ended - call.begun)
        return {kind: sorted(values) for kind, values in sorted(found.items())}


def percentile(ascending: Sequence[float], percent: float) -> float:
    return ascending[min(len(ascending) - 1, ceil(len(ascending) * percent / 100) - 1)]


async def until(stop: asyncio.Event, seconds: float) -> bool:
    """Waits that long, or until `stop`: whether it goes on."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return True
    return False
