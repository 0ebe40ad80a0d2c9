"""Which one of several deployers works: the holder of a Lease.

As in client-go, whether a lease has run out is told by how long it has been unchanged for the one who
looks, never by comparing clocks. A holder that cannot renew stops its work before another one can take the
lease.

https://kubernetes.io/docs/concepts/architecture/leases/
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from neuroweaver.cluster.api import Api
from neuroweaver.cluster.errors import BackendError
from neuroweaver.cluster.failures import Refusal
from neuroweaver.cluster.kinds import LEASE, Object

_LOG: Final = logging.getLogger("neuroweaver.deployer")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """lease_s: how long a silent holder is respected. renew_s: after which a holder that could not renew
    stops; lower than lease_s, so that two never work at once. retry_s: between two looks.
    """

    lease_s: float = 15.0
    renew_s: float = 10.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.retry_s < self.renew_s < self.lease_s:
            raise ValueError("retry_s, renew_s and lease_s must rise")


class Election:
    """identity: of this process, unlike any other's, such as the pod's name and something random."""

    def __init__(
        self, api: Api, namespace: str, name: str, identity: str, terms: Terms | None = None
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._terms = terms or Terms()
        self._seen: tuple[str, str] = ("", "")
        self._seen_at = 0.0
        self._leads = False

    @property
    def is_leader(self) -> bool:
        return self._leads

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Works whenever this process holds the lease, and cancels the work when it does not; until
        cancelled.

        Ends with the work's own exception, the lease given back.
        """
        try:
            while True:
                while not await self._take():  # noqa: ASYNC110  # another process's lease notifies nobody
                    await asyncio.sleep(self._terms.retry_s * random.uniform(0.5, 1.0))
                _LOG.info("leads", extra={"lease": self._name, "identity": self._identity})
                self._leads = True
                if await self._lead(work):
                    return
                self._leads = False
                _LOG.warning("leads no longer", extra={"lease": self._name, "identity": self._identity})
        finally:
            if self._leads:
                self._leads = False
                with contextlib.suppress(BackendError, Refusal, TimeoutError):
                    await asyncio.shield(self._give_back())

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Whether the work ended by itself."""
        working = asyncio.ensure_future(work())
        keeping = asyncio.create_task(self._keep())
        try:
            await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return True
            return False
        finally:
            for task in (working, keeping):
                task.cancel()
            await asyncio.wait({working, keeping})

    async def _keep(self) -> None:
        """Returns once the lease is lost, or could be."""
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(self._terms.retry_s)
            begun = time.monotonic()
            left = self._terms.renew_s - (begun - renewed)
            if left <= 0:
                return
            try:
                async with asyncio.timeout(left):
                    if not await self._take():
                        return
            except TimeoutError:
                return
            if self._was_renewed:
                renewed = begun

    async def _take(self) -> bool:
        """Whether this process holds the lease now, as far as it knows. A cluster that cannot be asked
        changes nothing.
        """
        self._was_renewed = False
        try:
            found = await self._api.get(LEASE, self._namespace, self._name)
            if found is None:
                self._note(await self._api.create(LEASE, self._namespace, self._lease(0)))
            elif not self._is_free(found):
                return False
            else:
                self._note(await self._api.replace(LEASE, self._namespace, self._claimed(found)))
        except Refusal as error:
            if error.status == 409:  # another one was quicker; the next look tells who
                return self._leads
            _LOG.warning("the lease was refused", extra={"lease": self._name, "cause": str(error)})
            return self._leads
        except BackendError as error:
            _LOG.warning("the lease cannot be reached", extra={"lease": self._name, "cause": str(error)})
            return self._leads
        self._was_renewed = True
        return True

    def _is_free(self, found: Object) -> bool:
        """Whether it is this process's own, nobody's, or has been silent for too long."""
        spec = found.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        seen = (holder, found["metadata"]["resourceVersion"])
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()
        if holder in {"", self._identity}:
            return True
        if self._leads:
            return False
        patience = float(spec.get("leaseDurationSeconds") or self._terms.lease_s)
        return time.monotonic() - self._seen_at >= max(patience, self._terms.lease_s)

    def _note(self, now: Object) -> None:
        self._seen = (self._identity, now["metadata"]["resourceVersion"])
        self._seen_at = time.monotonic()

    def _lease(self, transitions: int, acquired: str = "") -> Object:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.name,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": max(1, round(self._terms.lease_s)),
                "acquireTime": acquired or now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }

    def _claimed(self, found: Object) -> Object:
        spec = found.get("spec") or {}
        is_own = spec.get("holderIdentity") == self._identity
        transitions = int(spec.get("leaseTransitions") or 0) + (0 if is_own else 1)
        made = self._lease(transitions, spec.get("acquireTime", "") if is_own else "")
        # Only if nobody wrote it since.
        made["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        return made

    async def _give_back(self) -> None:
        """So that the next one need not wait."""
        found = await self._api.get(LEASE, self._namespace, self._name)
        if found is None or (found.get("spec") or {}).get("holderIdentity") != self._identity:
            return
        made = self._claimed(found)
        made["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        await self._api.replace(LEASE, self._namespace, made)
