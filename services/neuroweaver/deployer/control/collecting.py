"""Takes in what the replicas of deployments write into their logs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Final, cast

from neuroweaver.cluster.errors import BackendError
from neuroweaver.deployer.domain.backend import Key, Line
from neuroweaver.deployer.model_servers.logs import cut
from neuroweaver.deployer.planning import Backends
from neuroweaver.deployer.storage.lease import Lease, LeaseLost
from neuroweaver.deployer.storage.store import Store
from neuroweaver.deployer.storage.writer import Writer, by_itself
from neuroweaver.mesh.handlers.loop import Outage, repeat

_MAX_LINES: Final = 1000


class LogCollector:
    """period_s: between two collections of one deployment's lines. call_s: the longest that one may take."""

    def __init__(self, store: Store, backends: Backends, *, period_s: float, call_s: float) -> None:
        self._store = store
        self._backends = backends
        self._period_s = period_s
        self._call_s = call_s

    async def run(self, key: Key, lease: Lease | None) -> None:
        """Until cancelled, or the lease is lost."""

        async def turn() -> float | None:
            return 0.0 if await self.collect(key, lease) else None

        outage = Outage("logs", foreseen=(BackendError,), model_id=key.model_id, deployment=key.name)
        with suppress(LeaseLost):
            await repeat("logs", turn, self._period_s, passing=(LeaseLost,), outage=outage)

    async def collect(self, key: Key, lease: Lease | None = None) -> bool:
        """Takes in the lines that were written since the last time; whether there are more at once.

        What came before an error is kept. Raises BackendError, TimeoutError.
        """
        async with self._store.read(key.project) as deployments:
            kept = await deployments.find(key)
            cursors = await deployments.cursors(key)
        backend = self._backends.get(kept.deployment.spec.backend) if kept else None
        if kept is None or kept.deployment.is_gone or backend is None:
            return False
        lines: list[Line] = []
        stream = backend.logs(key, kept.deployment.resource_name, kept.deployment.spec, cursors)
        failure: BackendError | TimeoutError | None = None
        try:
            async with (
                asyncio.timeout(self._call_s),
                aclosing(cast(AsyncGenerator[Line], stream)) as arriving,
            ):
                async for line in arriving:
                    message = cut(line.message.replace("\0", "\N{REPLACEMENT CHARACTER}"))
                    lines.append(replace(line, message=message))
                    if len(lines) >= _MAX_LINES:
                        break
        except (BackendError, TimeoutError) as error:
            failure = error
        if lines:
            await self._add(key, lines, lease)
        if failure is not None:
            raise failure
        return len(lines) >= _MAX_LINES

    async def _add(self, key: Key, lines: list[Line], lease: Lease | None) -> None:
        async def add(deployments: Writer) -> None:
            if await deployments.find(key):
                await deployments.add_lines(key, lines, {line.replica_id: line.cursor for line in lines})

        await self._store.transact(by_itself(key), add, lease=lease)
