"""How a deployment does by all that was measured of it lately: its health, and each revision's breaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from neuroweaver.deployer.control.recent import Recent
from neuroweaver.deployer.domain.backend import Replica
from neuroweaver.deployer.domain.metrics import counts, health, thresholds
from neuroweaver.deployer.domain.metrics.health import MAX_TOKEN_AGE, Health, Serving
from neuroweaver.deployer.domain.metrics.proof import Proof
from neuroweaver.deployer.domain.metrics.thresholds import ThresholdState
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.v1 import deployer_pb2 as pb

_FAILING = frozenset({pb.REPLICA_PHASE_FAILED, pb.REPLICA_PHASE_CRASH_LOOP})

Breaches = Mapping[pb.ThresholdKind.ValueType, str]
"""The thresholds that are broken, each in words."""


@dataclass(frozen=True)
class Vitals:
    """breaches: by revision, of what each did by itself."""

    health: Health
    breaches: Mapping[int, Breaches] = field(default_factory=dict)


def vitals(deployment: Deployment, replicas: Sequence[Replica], recent: Recent, now: datetime) -> Vitals:
    """replicas: those that are there."""
    before = deployment.status.health
    by_revision = recent.counts(now)
    policy = deployment.spec.thresholds
    states = thresholds.evaluated(
        before.thresholds if before else (), policy, counts.total(by_revision.values()), now
    )
    found = health.judged(before, _serving(deployment, replicas, recent.proofs, now), states, now)
    breaches = {
        revision: _breaches(thresholds.evaluated((), policy, own, now))
        for revision, own in by_revision.items()
    }
    return Vitals(found, breaches)


def _serving(
    deployment: Deployment, replicas: Sequence[Replica], proofs: Mapping[int, Proof], now: datetime
) -> Serving:
    ready = [each for each in replicas if each.phase == pb.REPLICA_PHASE_READY]
    failed = [each for each in replicas if each.phase in _FAILING]
    known = [proofs[revision] for revision in {each.revision for each in ready} if revision in proofs]
    fresh = [each for each in known if now - each.last.time <= MAX_TOKEN_AGE]
    told = [each.last_token_time for each in ready if each.last_token_time is not None]
    tokens = [*told, *(each.token_time for each in known if each.token_time is not None)]
    asked = [each.asked_since for each in fresh if each.asked_since is not None]
    return Serving(
        desired=deployment.replicas,
        ready=len(ready),
        failed=len(failed),
        reason=next((each.message for each in failed if each.message), ""),
        running=_sum([each.last.measured.running for each in fresh]),
        waiting=_sum([each.last.measured.waiting for each in fresh]),
        last_token_time=max(tokens) if tokens else None,
        # A server that tells of its tokens makes some by itself, so that an old one is proof enough.
        asked_since=min(asked) if asked and not told else None,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _breaches(states: Sequence[ThresholdState]) -> Breaches:
    return {each.kind: thresholds.told(each) for each in states if each.is_breached}
