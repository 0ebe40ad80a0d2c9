"""How a deployment does by all that was measured of it lately: its health, and each revision's breaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from neuroweaver.deployer.control.recent import Recent
from neuroweaver.deployer.domain.backend import Replica
from neuroweaver.deployer.domain.metrics import counts, health, thresholds
from neuroweaver.deployer.domain.metrics.health import MAX_TOKEN_AGE, Health, Serving
from neuroweaver.deployer.domain.metrics.measurement import known_sum
from neuroweaver.deployer.domain.metrics.proof import Proof
from neuroweaver.deployer.domain.metrics.thresholds import ThresholdState
from neuroweaver.deployer.domain.model import Deployment
from neuroweaver.v1 import deployer_pb2 as pb

Breaches = Mapping[pb.ThresholdKind.ValueType, str]
"""The thresholds that are broken, each in words."""


def judged(
    deployment: Deployment, replicas: Sequence[Replica], recent: Recent, now: datetime
) -> tuple[Health, Mapping[int, Breaches]]:
    """Its health, and by revision the breaches of what each did by itself. replicas: those that are there."""
    before = deployment.status.health
    by_revision = recent.counts(now)
    policy = deployment.spec.thresholds
    states = thresholds.evaluated(
        before.thresholds if before else (), policy, counts.total(by_revision.values()), now
    )
    breaches = {
        revision: _breaches(thresholds.evaluated((), policy, own, now))
        for revision, own in by_revision.items()
    }
    return health.judged(before, _serving(deployment, replicas, recent.proofs, now), states, now), breaches


def _serving(
    deployment: Deployment, replicas: Sequence[Replica], proofs: Mapping[int, Proof], now: datetime
) -> Serving:
    ready = [replica for replica in replicas if replica.is_ready]
    failed = [replica for replica in replicas if replica.is_failing]
    own = [proofs[revision] for revision in {replica.revision for replica in ready} if revision in proofs]
    fresh = [proof for proof in own if now - proof.last.time <= MAX_TOKEN_AGE]
    reported = [replica.last_token_time for replica in ready if replica.last_token_time is not None]
    tokens = [*reported, *(proof.token_time for proof in own if proof.token_time is not None)]
    asked = [proof.asked_since for proof in fresh if proof.asked_since is not None]
    return Serving(
        desired=deployment.replicas,
        ready=len(ready),
        failed=len(failed),
        reason=next((replica.message for replica in failed if replica.message), ""),
        running=known_sum(proof.last.measured.running for proof in fresh),
        waiting=known_sum(proof.last.measured.waiting for proof in fresh),
        last_token_time=max(tokens) if tokens else None,
        # A server that reports its tokens makes some by itself, so that an old one is proof enough.
        asked_since=min(asked) if asked and not reported else None,
    )


def _breaches(states: Sequence[ThresholdState]) -> Breaches:
    return {state.kind: thresholds.described(state) for state in states if state.is_breached}
