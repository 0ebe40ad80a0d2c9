"""The deployments as the router knows them: what the deployer told last."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from neuroweaver.deployer.domain.backend import Key, Redirect
from neuroweaver.deployer.local.routes import Report, Reports, Route, Table, Tables, Woken
from neuroweaver.deployer.routing.counts import Counts
from neuroweaver.deployer.routing.router import Refusal
from neuroweaver.deployer.routing.shares import Affinity, at_random
from neuroweaver.mesh.handlers.signals import Signal

_POLL_S: Final = 0.02
_SUSPECT_S: Final = 1.0
"""By then the deployer has looked at the replica itself."""


class Fleet:
    """`routing.fleet.Fleet` by a table."""

    max_prompt_chars: Final = 0

    def __init__(self, woken: Signal) -> None:
        self.table: Table | None = None
        self.calls = self.waiting = 0
        self.in_flight: Counter[str] = Counter()
        self.suspects: dict[str, float] = {}
        self._woken = woken
        self._affinity = Affinity()
        self._counts: dict[int, Counts] = {}

    def take(self, table: Table) -> None:
        self.table = table
        there = {route.replica_id for route in table.routes}
        for replica_id in self.suspects.keys() - there:
            del self.suspects[replica_id]

    @property
    def redirect(self) -> Redirect | None:
        return self.table.redirect if self.table else None

    def pick(self, conversation: str, tried: Collection[str]) -> Upstream | None:
        """The revision by weight and conversation, within it who has least to do."""
        self.calls += 1
        if self.table is None:
            return None
        now = time.monotonic()
        able = [each for each in self.table.routes if each.replica_id not in tried]
        steady = [each for each in able if self.suspects.get(each.replica_id, 0.0) <= now]
        route = self._chosen(self.table, conversation, steady or able)
        return Upstream(route, self) if route else None

    async def awake(self, conversation: str, within_s: float) -> Upstream | None:
        self.waiting += 1
        self._woken.notify()
        try:
            give_up = time.monotonic() + within_s
            while self.table and self.table.is_awaited and time.monotonic() < give_up:
                if upstream := self.pick(conversation, ()):
                    return upstream
                await asyncio.sleep(_POLL_S)
            return self.pick(conversation, ())
        finally:
            self.waiting -= 1

    def counts(self, revision: int) -> Counts:
        return self._counts.setdefault(revision, Counts())

    def is_expected(self) -> bool:
        return self.table is not None and self.table.is_expected

    def report(self) -> Report:
        in_flight = {replica_id: number for replica_id, number in self.in_flight.items() if number}
        return Report(self.calls, self.waiting, in_flight, self._counts)

    def _chosen(self, table: Table, conversation: str, able: list[Route]) -> Route | None:
        revisions = {each.revision for each in able}
        weights = {each: weight for each, weight in table.weights.items() if each in revisions}
        if conversation and table.is_affine:
            chosen = self._affinity.revision(conversation, weights, table.held)
        else:
            chosen = at_random(weights)
        of_revision = [each for each in able if each.revision == chosen]
        return min(
            of_revision, key=lambda each: (self.in_flight[each.replica_id], random.random()), default=None
        )


@dataclass(frozen=True)
class Upstream:
    """`routing.fleet.Upstream`: a replica."""

    route: Route
    fleet: Fleet

    @property
    def replica_id(self) -> str:
        return self.route.replica_id

    @property
    def revision(self) -> int:
        return self.route.revision

    @property
    def base_url(self) -> str:
        return self.route.url

    @contextmanager
    def busy(self) -> Iterator[None]:
        self.fleet.in_flight[self.replica_id] += 1
        try:
            yield
        finally:
            self.fleet.in_flight[self.replica_id] -= 1

    def suspect(self, *, has_refused: bool) -> None:
        """On loopback only one that is too busy, or beside a machine that is, does not take a connection in
        time.
        """
        if has_refused:
            self.fleet.suspects[self.replica_id] = time.monotonic() + _SUSPECT_S


class Fleets:
    """All deployments of this machine."""

    def __init__(self) -> None:
        self.woken = Signal()
        self._fleets: dict[str, Fleet] = {}
        self._by_key: dict[Key, Fleet] = {}
        self._is_whole = False

    def take(self, told: Tables) -> None:
        for name in self._fleets.keys() - set(told.names):
            del self._fleets[name]
        for table in told.tables:
            fleet = self._fleets.get(table.resource_name) or Fleet(self.woken)
            fleet.take(table)
            self._fleets[table.resource_name] = fleet
        self._by_key = {fleet.table.key: fleet for fleet in self._fleets.values() if fleet.table}
        self._is_whole = told.is_whole

    def of(self, key: Key) -> Fleet | None:
        """Raises Refusal while it is not known yet whose replicas an earlier deployer left."""
        fleet = self._by_key.get(key)
        if fleet is None and not self._is_whole:
            raise Refusal(503, "not_ready", "the deployer has just started; ask again in a moment")
        return fleet

    def reports(self) -> Reports:
        return Reports({name: fleet.report() for name, fleet in self._fleets.items()})

    def waited_for(self) -> Woken:
        names = [name for name, fleet in self._fleets.items() if fleet.waiting]
        return Woken(self.woken.count, tuple(names))
