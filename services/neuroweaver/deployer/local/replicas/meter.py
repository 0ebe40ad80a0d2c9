"""What the replicas of one deployment use, and what is counted of their revisions."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import httpx2

from neuroweaver.deployer.domain.backend import Measured
from neuroweaver.deployer.domain.metrics.measurement import known_sum
from neuroweaver.deployer.local.replicas import probe
from neuroweaver.deployer.local.replicas.replica import Replica
from neuroweaver.deployer.local.scaling.autoscaler import Use
from neuroweaver.deployer.model_servers.metrics import Page
from neuroweaver.deployer.routing.counts import Counts


@dataclass(frozen=True)
class _Cpu:
    """time: of the look, seconds of one monotonic clock. used_s: by then. cores: since the look before."""

    time: float
    used_s: float
    cores: float | None


class Meter:
    def __init__(self) -> None:
        self.counts: Mapping[int, Counts] = {}
        """By revision, as the router told them last."""
        self._cpu: dict[int, _Cpu] = {}
        self._tokens: Counter[int] = Counter()
        self._tokens_seen: dict[tuple[str, int], int] = {}

    def look(self, replicas: Collection[Replica], now: float) -> dict[int, Use]:
        """The use of ready replicas by revision, since the last look."""
        self._cpu = {each.number: cpu for each in replicas if (cpu := self._cpu_of(each, now))}
        ready = [each for each in replicas if each.is_ready]
        return {
            revision: self._use([each for each in ready if each.revision == revision])
            for revision in {each.revision for each in ready}
        }

    async def measure(
        self, client: httpx2.AsyncClient, revisions: Collection[int], replicas: Collection[Replica]
    ) -> list[Measured]:
        """Requests, errors and times as the router saw them; the rest as the replicas report it."""
        running = [each for each in replicas if each.process is not None]
        read = await asyncio.gather(*(probe.page(client, each.base_url) for each in running))
        pages = dict(zip(running, read, strict=True))
        for replica, page in pages.items():
            self._count_tokens(replica, page)
        return [
            self._measured(
                revision, {each: page for each, page in pages.items() if each.revision == revision}
            )
            for revision in sorted({*revisions, *(each.revision for each in running)})
        ]

    def _use(self, ready: Sequence[Replica]) -> Use:
        cpu = [_share(self._cores(each), each.need.cores) for each in ready]
        memory = [_share(_memory(each), each.need.memory_bytes) for each in ready]
        return Use(sum(each.in_flight for each in ready), known_sum(cpu), known_sum(memory))

    def _cpu_of(self, replica: Replica, now: float) -> _Cpu | None:
        used_s = replica.process.cpu_seconds() if replica.process else None
        if used_s is None:
            return None
        before = self._cpu.get(replica.number)
        # A process that was started anew begins at 0.
        is_same = before is not None and now > before.time and used_s >= before.used_s
        cores = (used_s - before.used_s) / (now - before.time) if before is not None and is_same else None
        return _Cpu(now, used_s, cores)

    def _cores(self, replica: Replica) -> float | None:
        known = self._cpu.get(replica.number)
        return known.cores if known else None

    def _count_tokens(self, replica: Replica, page: Page | None) -> None:
        """Adds up over restarts, after which a replica counts from 0 again."""
        if replica.process is not None and page is not None:
            seen = (replica.replica_id, replica.process.identity.pid)
            self._tokens[replica.revision] += max(0, page.tokens - self._tokens_seen.get(seen, 0))
            self._tokens_seen[seen] = page.tokens

    def _measured(self, revision: int, pages: Mapping[Replica, Page | None]) -> Measured:
        counts = self.counts.get(revision) or Counts()
        known = [page for page in pages.values() if page is not None]
        return Measured(
            revision=revision,
            requests=counts.requests,
            errors=counts.errors,
            tokens=self._tokens[revision],
            running=known_sum(page.running for page in known),
            waiting=known_sum(page.waiting for page in known),
            latency_ms=counts.latency.cumulative(),
            first_token_ms=counts.first_token.cumulative(),
            cpu_cores=known_sum(self._cores(replica) for replica in pages),
            memory_bytes=known_sum(_memory(replica) for replica in pages),
            missing_replicas=tuple(replica.replica_id for replica, page in pages.items() if page is None),
        )


def _memory(replica: Replica) -> int | None:
    return replica.process.memory_bytes() if replica.process else None


def _share(used: float | None, set_aside: float) -> float | None:
    return used / set_aside if used is not None and set_aside else None
