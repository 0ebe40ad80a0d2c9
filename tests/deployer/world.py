"""A made-up cluster for the state machine: replicas that start and end as told, and traffic by weight."""

import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np

from neuroweaver.deployer.domain.backend import Measured
from neuroweaver.deployer.domain.defaults import filled
from neuroweaver.deployer.domain.rollouts import replacing, transitions
from neuroweaver.deployer.domain.rollouts.rollout import RevisionSeen, Seen
from neuroweaver.deployer.storage.reader import RECORDS
from neuroweaver.v1 import deployer_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BOUNDS = (25, 50, 100, 200, 400, 800, 1600, 3200, math.inf)
READY = pb.REPLICA_PHASE_READY
LOADING = pb.REPLICA_PHASE_LOADING
CRASH_LOOP = pb.REPLICA_PHASE_CRASH_LOOP
DRAINING = pb.REPLICA_PHASE_DRAINING


def spec(*weights, replicas=1, bake=60, checks=(), interval=10, **policy):
    """weights: a canary's steps. checks: (metric, limit, value)."""
    made = pb.DeploymentSpec(replicas=replicas, rollout=pb.RolloutPolicy(**policy))
    for weight in weights:
        made.rollout.canary.steps.add(weight_percent=weight, bake_time={"seconds": bake})
    for metric, limit, value in checks:
        made.rollout.canary.analysis.checks.add(metric=metric, **{limit: value})
    if checks:
        made.rollout.canary.analysis.interval.seconds = interval
    return filled(made)


def stored(record):
    """As a transaction of a later process reads it."""
    return RECORDS.load(type(record), RECORDS.dump(record))


class World:
    """start_s: how long a replica takes to be ready. broken: revisions whose replicas never get there.

    error_rate, latency_ms: of revisions; rps: requests a second in all.
    """

    def __init__(self, made, *, stable=1, candidate=2, mode=0, start_s=10, rps=0.0, seed=0, **options):
        self.spec, self.now, self.start_s, self.rps = made, NOW, start_s, rps
        self.broken, self.phase_when_broken = set(), CRASH_LOOP
        self.error_rate, self.latency_ms = Counter(), {}
        self.breaches = {}
        self.random = np.random.default_rng(seed)
        self.replicas = {}  # revision to the times at which its replicas are ready
        self.draining = {}
        self.drain_s = 0
        self.counted = {}
        if stable:
            self.replicas[stable] = [NOW] * replacing.whole_size(made, 1)
        self.rollout = transitions.begin(stable, candidate, made, mode, NOW, **options)
        self.history = [self.rollout]

    def seen_of(self, revision):
        ready = [
            (self.phase_when_broken if revision in self.broken else READY if at <= self.now else LOADING)
            for at in self.replicas.get(revision, [])
        ]
        drained = [DRAINING for at in self.draining.get(revision, []) if at > self.now]
        self.draining[revision] = [at for at in self.draining.get(revision, []) if at > self.now]
        return RevisionSeen(
            phases=(*ready, *drained),
            reason="it is broken" if revision in self.broken else "",
            breaches=self.breaches.get(revision, {}),
            measured=self.measured(revision) if self.rps else None,
        )

    def measured(self, revision):
        counts = self.counted.get(revision, Counter())
        cumulative = np.cumsum([counts[bound] for bound in BOUNDS]).tolist()
        return Measured(
            revision,
            requests=counts["requests"],
            errors=counts["errors"],
            latency_ms=dict(zip(BOUNDS, cumulative, strict=True)),
        )

    def seen(self):
        stable, candidate = self.rollout.stable, self.rollout.candidate
        others = [revision for revision in self.replicas if revision not in {stable, candidate}]
        return Seen(
            stable=self.seen_of(stable),
            candidate=self.seen_of(candidate),
            others=sum(self.seen_of(each).current for each in others),
        )

    def ticks(self):
        """What is seen after each, until the end."""
        while not self.rollout.is_over:
            self.tick()
            yield self.seen()

    def tick(self, s=1):
        """The reconcile loop once: looks, decides (from what was stored), and has its desired state carried out."""
        self.now += timedelta(seconds=s)
        self.traffic(s)
        self.rollout = transitions.step(stored(self.rollout), self.spec, self.seen(), self.now)
        self.history.append(self.rollout)
        self.apply()

    def apply(self):
        wanted = {each.revision: each.replicas for each in replacing.targets(self.rollout, self.spec)}
        for revision in {*wanted, *self.replicas}:
            have = self.replicas.setdefault(revision, [])
            while len(have) > wanted.get(revision, 0):
                have.pop()
                self.draining.setdefault(revision, []).append(self.now + timedelta(seconds=self.drain_s))
            while len(have) < wanted.get(revision, 0):
                have.append(self.now + timedelta(seconds=self.start_s))

    def traffic(self, s):
        for each in replacing.targets(self.rollout, self.spec):
            requests = int(self.random.poisson(self.rps * s * each.weight_percent / 100))
            if not requests:
                continue
            counts = self.counted.setdefault(each.revision, Counter())
            counts["requests"] += requests
            counts["errors"] += int(self.random.binomial(requests, self.error_rate[each.revision]))
            median = self.latency_ms.get(each.revision, 150)
            latencies = self.random.lognormal(math.log(median), 0.6, requests)
            for bound, count in Counter(BOUNDS[i] for i in np.searchsorted(BOUNDS, latencies)).items():
                counts[bound] += count

    def run(self, until=None, most_s=4000, s=1):
        """Until a state, or the end."""
        for _ in range(int(most_s / s)):
            if self.rollout.is_over or self.rollout.state == until:
                return self.rollout
            self.tick(s)
        return self.rollout

    @property
    def elapsed(self):
        return (self.now - NOW).total_seconds()
