"""Hears of every change to the deployer's objects: list, then watch from there, for as long as it takes.

A watch that ends or is lost goes on from the last moment known, which bookmarks keep young; one whose
moment the API server has forgotten (410 Gone) begins again with a list, and what vanished meanwhile is
reported then.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from neuroweaver.cluster.api import Api
from neuroweaver.cluster.errors import LOST, BackendError
from neuroweaver.cluster.failures import Refusal
from neuroweaver.cluster.kinds import Kind, Object
from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.kubernetes.naming import identity

_LOG: Final = logging.getLogger("neuroweaver.deployer")

_LOST: Final = (*LOST, BackendError)
_UNKNOWN_KIND_S: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """first_s doubles with every failure in a row, up to longest_s."""

    first_s: float = 0.2
    longest_s: float = 10.0

    def wait_s(self, failures: int) -> float:
        return min(self.first_s * 2.0 ** min(failures, 16), self.longest_s) * random.uniform(0.5, 1.0)


class Watcher:
    """One kind in one namespace. fields: a field selector, for who may see just one object."""

    def __init__(
        self,
        api: Api,
        kind: Kind,
        namespace: str,
        changed: Callable[[Key], None],
        backoff: Backoff | None = None,
        *,
        fields: str = "",
    ) -> None:
        self._fields = fields
        self._api = api
        self._kind = kind
        self._namespace = namespace
        self._changed = changed
        self._backoff = backoff or Backoff()
        self._known: dict[str, tuple[Key, str]] = {}
        self._complaint = ""

    async def run(self) -> None:
        """Until cancelled."""
        failures, moment = 0, ""
        while True:
            try:
                moment = moment or await self._relist()
                moment, heard = await self._follow(moment)
                failures = 0 if heard else failures + 1
            except Refusal as error:
                moment = "" if error.is_expired else moment
                failures += 1
                if error.is_missing:  # the kind is not installed, or no longer
                    moment = ""
                    await asyncio.sleep(_UNKNOWN_KIND_S)
                elif not error.is_expired:
                    self._complain(logging.WARNING, "a watch was refused", error)
                    await asyncio.sleep(max(error.retry_after_s or 0.0, self._backoff.wait_s(failures)))
                elif failures > 1:  # forgotten again, right after a list
                    await asyncio.sleep(self._backoff.wait_s(failures))
                continue
            except _LOST as error:
                failures += 1
                self._complain(logging.INFO, "a watch was lost", error)
            if failures:
                await asyncio.sleep(self._backoff.wait_s(failures))

    async def _relist(self) -> str:
        """Reports what differs from what was known; returns the moment of the list."""
        listing = await self._api.list(self._kind, self._namespace, identity.MANAGED, self._fields)
        known: dict[str, tuple[Key, str]] = {}
        for item in listing.items:
            if key := identity.key_of(item):
                metadata = item["metadata"]
                known[metadata["uid"]] = (key, metadata["resourceVersion"])
        for uid in known.keys() | self._known.keys():
            if known.get(uid) != self._known.get(uid):
                self._changed((known.get(uid) or self._known[uid])[0])
        self._known = known
        return listing.resource_version

    async def _follow(self, moment: str) -> tuple[str, bool]:
        """Returns the last moment known, however the watch ends, and whether anything was heard."""
        heard = False
        try:
            async with self._api.watch(
                self._kind, self._namespace, identity.MANAGED, moment, self._fields
            ) as events:
                async for event in events:
                    heard = True
                    self._complaint = ""
                    moment = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self._tell(event["type"], event["object"])
        except _LOST as error:
            self._complain(logging.INFO, "a watch was lost", error)
        return moment, heard

    def _complain(self, level: int, words: str, error: Exception) -> None:
        """Once, however long it lasts: a cluster that is away for an hour fills no log."""
        if words != self._complaint:
            self._complaint = words
            _LOG.log(level, words, extra={"kind": self._kind.name, "cause": str(error)})

    def _tell(self, kind: str, item: Object) -> None:
        key = identity.key_of(item)
        if key is None:
            return
        metadata = item["metadata"]
        if kind == "DELETED":
            self._known.pop(metadata["uid"], None)
        else:
            self._known[metadata["uid"]] = (key, metadata["resourceVersion"])
        self._changed(key)
