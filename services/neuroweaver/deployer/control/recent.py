"""What was measured of each deployment over the window of its thresholds, kept at hand.

It is read from the database once; after that only what came since is read. So a look at a window of a day
costs no more than one at a window of five minutes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from neuroweaver.deployer.domain.backend import Key
from neuroweaver.deployer.domain.metrics import counts
from neuroweaver.deployer.domain.metrics.counts import Counts, Sample
from neuroweaver.deployer.domain.metrics.measurement import Tally
from neuroweaver.deployer.domain.metrics.proof import Proof, first
from neuroweaver.deployer.domain.metrics.window import Window
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.deployer.storage.reader import Reader
from neuroweaver.mesh.wire.clock import SKEW

MOST_DEPLOYMENTS: Final = 1000


@dataclass(frozen=True)
class Basis:
    """What everything is counted anew for once it is another."""

    create_time: datetime
    length: timedelta
    replica_hour_usd: float | None

    @classmethod
    def of(cls, deployment: Deployment) -> Basis:
        length = deployment.spec.thresholds.window.ToTimedelta()
        return cls(deployment.create_time, length, deployment.replica_hour_usd)


@dataclass(frozen=True)
class Recent:
    """As of one state of the database. tallied: the time of the last tally. cursor: of the last sample.

    windows, proofs: by revision.
    """

    basis: Basis
    tallied: datetime
    cursor: int = 0
    windows: Mapping[int, Window] = field(default_factory=dict)
    proofs: Mapping[int, Proof] = field(default_factory=dict)

    def counts(self, now: datetime) -> Mapping[int, Counts]:
        """By revision."""
        return {revision: window.total(now) for revision, window in self.windows.items()}

    def followed_by(
        self,
        deployment: Deployment,
        tallies: Sequence[Tally],
        samples: Sequence[Sample],
        cursor: int,
        now: datetime,
    ) -> Recent:
        """With what came since: tallies in order, samples up to the cursor."""
        if not tallies and not samples:
            return replace(self, cursor=cursor)
        numbers = {0, *(revision.number for revision in deployment.revisions)}
        windows = {number: window.copy() for number, window in self.windows.items() if number in numbers}
        proofs = {number: proof for number, proof in self.proofs.items() if number in numbers}

        def add(revision: int, time: datetime, counted: Counts) -> None:
            # A report may come from a clock that is ahead; it counts from now on.
            windows.setdefault(revision, Window(self.basis.length)).add(min(time, now), counted)

        entries: list[Tally | Sample] = [*tallies, *samples]
        for entry in sorted(entries, key=lambda each: each.time):
            if isinstance(entry, Tally):
                revision = entry.measured.revision
                proof = proofs.get(revision)
                if proof is not None:
                    add(revision, entry.time, self._between(proof.last, entry))
                proofs[revision] = proof.followed_by(entry) if proof is not None else first(entry)
            else:
                revision = deployment.served_by(entry.version)
                is_loaded = revision in proofs and bool(proofs[revision].last.measured.waiting)
                add(revision, entry.time, counts.reported(entry, is_loaded=is_loaded))
        tallied = max([self.tallied, *(tally.time for tally in tallies)])
        return replace(self, tallied=tallied, cursor=cursor, windows=windows, proofs=proofs)

    def _between(self, before: Tally, after: Tally) -> Counts:
        elapsed = after.time - before.time
        if elapsed > self.basis.length:
            return Counts()  # most of it lies before the window
        return counts.between(
            before.measured,
            after.measured,
            elapsed,
            replicas=after.replicas,
            replica_hour_usd=self.basis.replica_hour_usd,
        )


class Memory:
    """Of the deployments looked at last. Only the event loop's thread asks."""

    def __init__(self, most: int = MOST_DEPLOYMENTS) -> None:
        self._most = most
        self._kept: OrderedDict[Key, Recent] = OrderedDict()

    async def caught_up(self, deployments: Reader, deployment: Deployment, now: datetime) -> Recent:
        """With all that this transaction sees. For `keep` only once what it wrote itself is committed."""
        key, basis = deployment.key, Basis.of(deployment)
        cursor = await deployments.last_sample(key)
        before = self._kept.get(key)
        # The numbers of samples begin anew once all of them were cleared away.
        latest = now + SKEW
        if before is None or before.basis != basis or cursor < before.cursor or before.tallied > latest:
            before = Recent(basis, now - basis.length)
            samples = await deployments.samples(key, before.tallied)
        else:
            samples = await deployments.samples_after(key, before.cursor) if cursor > before.cursor else []
        tallies = await deployments.tallies_after(key, before.tallied)
        tallies = [tally for tally in tallies if tally.time <= latest]
        return before.followed_by(deployment, tallies, samples, cursor, now)

    def keep(self, key: Key, recent: Recent) -> None:
        self._kept[key] = recent
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """For when others may have written what would seem older than what is kept here."""
        self._kept.clear()
