"""Replicas and traffic of the two revisions of a rollout, where it stands.

The stable revision keeps its size until the candidate is promoted, so that it can take everything back; then
new replicas come as there is room for them above the number wanted, and old ones go as new ones are ready. A
revision without a ready replica gets no traffic while the other one has one, whatever the step's weight is.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Final

from neuroweaver.deployer.domain.rollouts.rollout import WHOLE, Rollout, Seen, step_weight
from neuroweaver.deployer.domain.scaling import portion
from neuroweaver.v1 import deployer_pb2 as pb

_WITH_TRAFFIC: Final = frozenset({pb.ROLLOUT_STATE_BAKING, pb.ROLLOUT_STATE_HELD, pb.ROLLOUT_STATE_PROMOTING})


@dataclass(frozen=True)
class Target:
    """What a revision should be now; with `autoscaling` the backend chooses within these bounds."""

    revision: int
    replicas: int
    weight_percent: int
    autoscaling: pb.Autoscaling | None = None


def targets(rollout: Rollout, spec: pb.DeploymentSpec) -> tuple[Target, ...]:
    """The stable revision first, then the candidate; after the end the one that stays. Weights add up to 100,
    or to 0 while nothing serves. A revision that is not named is to be removed.
    """
    is_scaled = spec.WhichOneof("scaling") == "autoscaling"
    if rollout.is_over:
        is_promoted = rollout.state == pb.ROLLOUT_STATE_PROMOTED
        revision = rollout.candidate if is_promoted else rollout.stable
        size = whole_size(spec, rollout.size)
        return (Target(revision, size, WHOLE, spec.autoscaling if is_scaled else None),)
    candidate = Target(
        rollout.candidate,
        rollout.candidate_replicas,
        rollout.candidate_weight,
        _candidate_bounds(rollout, spec) if is_scaled and rollout.candidate_replicas else None,
    )
    if not rollout.stable:
        return (candidate,)
    stable = Target(
        rollout.stable,
        rollout.stable_replicas,
        WHOLE - rollout.candidate_weight,
        _stable_bounds(rollout, spec) if is_scaled and rollout.stable_replicas else None,
    )
    return stable, candidate


def peak_replicas(spec: pb.DeploymentSpec, replacement: pb.ReplacementMode.ValueType, size: int) -> int:
    """The most replicas that a rollout of so many has at a time."""
    if replacement in {pb.REPLACEMENT_MODE_RECREATE, pb.REPLACEMENT_MODE_SWAP_ADAPTER} or not size:
        return size
    surge = spec.rollout.max_surge
    if spec.rollout.HasField("canary"):
        surge = max(surge, portion(size, spec.rollout.canary.steps[-1].weight_percent), 1)
    return size + surge


def whole_size(spec: pb.DeploymentSpec, serving: int) -> int:
    if spec.WhichOneof("scaling") == "autoscaling":
        bounds = spec.autoscaling
        return min(max(serving, bounds.min_replicas, 1), bounds.max_replicas)
    return spec.replicas


def needed_replicas(rollout: Rollout, spec: pb.DeploymentSpec) -> int:
    """Ready replicas that the candidate needs where it stands."""
    if not rollout.is_canary or rollout.state == pb.ROLLOUT_STATE_PROMOTING:
        return rollout.size
    return max(1, portion(rollout.size, step_weight(spec, max(1, rollout.step)))) if rollout.size else 0


def sized(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen) -> Rollout:
    if rollout.is_over:
        return replace(rollout, stable_replicas=0, candidate_replicas=0)
    size, mode = rollout.size, rollout.replacement
    stable, candidate = _rolled(rollout, spec, seen)
    if rollout.state == pb.ROLLOUT_STATE_ROLLING_BACK:
        must_wait = mode == pb.REPLACEMENT_MODE_RECREATE and seen.candidate.current
        stable, candidate = 0 if must_wait else size, 0
    elif mode == pb.REPLACEMENT_MODE_SWAP_ADAPTER:
        stable, candidate = 0 if rollout.state == pb.ROLLOUT_STATE_PROMOTING else size, size
    elif mode == pb.REPLACEMENT_MODE_RECREATE:
        stable, candidate = 0, 0 if seen.stable.current or seen.others else size
    return replace(rollout, stable_replicas=stable if rollout.stable else 0, candidate_replicas=candidate)


def weight(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen) -> int:
    if rollout.state == pb.ROLLOUT_STATE_PROMOTED:
        return WHOLE
    if rollout.state not in _WITH_TRAFFIC or not seen.candidate.ready:
        return 0
    if not rollout.stable or not seen.stable.ready:
        return WHOLE
    if rollout.state == pb.ROLLOUT_STATE_PROMOTING:
        if seen.candidate.ready >= rollout.size:
            return WHOLE
        grown = WHOLE * seen.candidate.ready // (seen.candidate.ready + seen.stable.ready)
        return max(grown, step_weight(spec, rollout.step))
    return step_weight(spec, rollout.step if rollout.step_start is not None else rollout.step - 1)


def _rolled(rollout: Rollout, spec: pb.DeploymentSpec, seen: Seen) -> tuple[int, int]:
    """Replicas of both: new ones as there is room for them, old ones away as new ones are ready."""
    size, needed = rollout.size, needed_replicas(rollout, spec)
    there = max(seen.stable.current, rollout.stable_replicas) if rollout.stable else 0
    room = peak_replicas(spec, rollout.replacement, size) - there - seen.others
    candidate = min(needed, max(room, rollout.candidate_replicas, 0))
    if rollout.is_canary and rollout.state != pb.ROLLOUT_STATE_PROMOTING:
        return size, candidate
    staying = size - spec.rollout.max_unavailable - seen.candidate.ready
    return max(0, min(rollout.stable_replicas, staying)), candidate


def _stable_bounds(rollout: Rollout, spec: pb.DeploymentSpec) -> pb.Autoscaling:
    """Those of the spec; never idle in a rollout, no more than it keeps while it ends, and as large as it was
    at once when all the traffic returns.
    """
    bounds = deepcopy(spec.autoscaling)
    least = max(1, bounds.min_replicas)
    if rollout.state == pb.ROLLOUT_STATE_ROLLING_BACK:
        least = max(least, rollout.stable_replicas)
    elif rollout.stable_replicas < rollout.size:
        bounds.max_replicas = rollout.stable_replicas
    bounds.min_replicas = min(least, bounds.max_replicas)
    bounds.ClearField("idle_timeout")
    return bounds


def _candidate_bounds(rollout: Rollout, spec: pb.DeploymentSpec) -> pb.Autoscaling:
    """As many as it needs at least, and its own share of the most."""
    bounds = deepcopy(spec.autoscaling)
    is_step = rollout.is_canary and rollout.state != pb.ROLLOUT_STATE_PROMOTING
    share = step_weight(spec, max(1, rollout.step)) if is_step else WHOLE
    bounds.min_replicas = rollout.candidate_replicas
    bounds.max_replicas = max(rollout.candidate_replicas, portion(spec.autoscaling.max_replicas, share))
    bounds.ClearField("idle_timeout")
    return bounds
