"""How a deployment does by all that was measured of it lately: its health, and each revision's breaches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from neuroweaver.deployer import counts, health, thresholds
from neuroweaver.deployer.backend import Replica
from neuroweaver.deployer.counts import Counts
from neuroweaver.deployer.health import Health, Serving
from neuroweaver.deployer.measurement import Sample, Tally
from neuroweaver.deployer.model import Deployment
from neuroweaver.deployer.reader import Reader
from neuroweaver.deployer.thresholds import ThresholdState
from neuroweaver.v1 import deployer_pb2 as pb

_FAILING = frozenset({pb.REPLICA_PHASE_FAILED, pb.REPLICA_PHASE_CRASH_LOOP})

Breaches = Mapping[pb.ThresholdKind.ValueType, str]
"""The thresholds that are broken, each in words."""


@dataclass(frozen=True)
class Vitals:
    """breaches: by revision, of what each did by itself."""

    health: Health
    breaches: Mapping[int, Breaches] = field(default_factory=dict)


async def taken(
    deployments: Reader, deployment: Deployment, replicas: Sequence[Replica], now: datetime
) -> Vitals:
    """replicas: those that are there."""
    since = now - deployment.spec.thresholds.window.ToTimedelta()
    tallies = await deployments.tallies(deployment.key, since)
    samples = await deployments.samples(deployment.key, since)
    return vitals(deployment, replicas, tallies, samples, now)


def vitals(
    deployment: Deployment,
    replicas: Sequence[Replica],
    tallies: Sequence[Tally],
    samples: Sequence[Sample],
    now: datetime,
) -> Vitals:
    """tallies, samples: of the window of the thresholds, in order."""
    before = deployment.status.health
    by_revision = _by_revision(deployment, tallies, samples)
    policy = deployment.spec.thresholds
    states = thresholds.evaluated(
        before.thresholds if before else (), policy, counts.total(by_revision.values()), now
    )
    found = health.judged(before, _serving(deployment, replicas, tallies), states, now)
    breaches = {
        revision: _breaches(thresholds.evaluated((), policy, own, now))
        for revision, own in by_revision.items()
    }
    return Vitals(found, breaches)


def _by_revision(
    deployment: Deployment, tallies: Sequence[Tally], samples: Sequence[Sample]
) -> Mapping[int, Counts]:
    engine = deployment.spec.engine
    price = engine.replica_hour_usd if engine.HasField("replica_hour_usd") else None
    found: dict[int, Counts] = defaultdict(Counts)
    for revision, own in _sorted(tallies).items():
        for before, after in pairwise(own):
            counted = counts.between(
                before.measured,
                after.measured,
                after.time - before.time,
                replicas=after.replicas,
                replica_hour_usd=price,
            )
            found[revision] += counted or Counts()
    waiting = {revision: bool(own[-1].measured.waiting) for revision, own in _sorted(tallies).items()}
    for sample in samples:
        revision = deployment.served_by(sample.version)
        found[revision] += counts.reported(sample, is_loaded=waiting.get(revision, False))
    return found


def _sorted(tallies: Sequence[Tally]) -> Mapping[int, Sequence[Tally]]:
    found: dict[int, list[Tally]] = defaultdict(list)
    for tally in tallies:
        found[tally.measured.revision].append(tally)
    return found


def _serving(deployment: Deployment, replicas: Sequence[Replica], tallies: Sequence[Tally]) -> Serving:
    ready = [each for each in replicas if each.phase == pb.REPLICA_PHASE_READY]
    failed = [each for each in replicas if each.phase in _FAILING]
    tokens = [each.last_token_time for each in ready if each.last_token_time is not None]
    last = [own[-1].measured for own in _sorted(tallies).values()]
    return Serving(
        desired=deployment.replicas,
        ready=len(ready),
        failed=len(failed),
        reason=next((each.message for each in failed if each.message), ""),
        running=_sum([each.running for each in last]),
        waiting=_sum([each.waiting for each in last]),
        last_token_time=max(tokens) if tokens else None,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _breaches(states: Sequence[ThresholdState]) -> Breaches:
    return {each.kind: thresholds.told(each) for each in states if each.is_breached}
