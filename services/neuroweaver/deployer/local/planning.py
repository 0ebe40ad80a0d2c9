"""What a desired state would do on this machine, changing nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from neuroweaver.cluster import quantities
from neuroweaver.deployer.domain.backend import (
    BackendPlan,
    Capacity,
    DesiredRevision,
    DesiredState,
    FieldChange,
    Finding,
    Planned,
)
from neuroweaver.deployer.local.machine.machine import Need, lack
from neuroweaver.deployer.local.replicas.launch import Launch
from neuroweaver.deployer.local.scaling.autoscaler import least_of
from neuroweaver.v1 import deployer_pb2 as pb

_FIELDS: Final = {
    "cpu": "resources.cpu_request",
    "memory": "resources.memory_request",
    "gpu": "resources.gpus",
}
"""Of the spec, by what there is too little of."""


@dataclass(frozen=True)
class Running:
    """A replica that is there. target, frame, description: those of its `Launch`; None where not known."""

    replica_id: str
    target: str
    frame: str
    need: Need
    description: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Situation:
    """free: set aside for nobody, or for the deployment's own replicas. numbers: of the next replicas."""

    resource_name: str
    running: tuple[Running, ...]
    free: Need
    numbers: Iterator[int]


@dataclass(frozen=True)
class _Sizes:
    """Needs of the deployment. surge, canary: at the peak of such a way there. step: one more replica."""

    end: Need
    surge: Need
    canary: Need
    step: Need


def plan(wanted: DesiredState, now: Situation) -> BackendPlan:
    launches = [(revision, Launch.of(wanted, revision)) for revision in wanted.revisions]
    old = [each for each in now.running if each.target not in {launch.target for _, launch in launches}]
    sizes = _sizes(wanted, launches, old)
    is_canary = wanted.spec.rollout.HasField("canary") and bool(old or len(launches) > 1)
    mode, reason = _mode(wanted, launches, old, sizes, now.free, is_canary)
    is_surging = bool(old) and mode == pb.REPLACEMENT_MODE_SURGE
    peak = sizes.canary if is_canary else sizes.surge if is_surging else sizes.end
    findings = [*_refusals(wanted.spec), *_room(wanted, mode, sizes, peak, now, is_canary)]
    return BackendPlan(
        objects=tuple(_objects(launches, old, mode, now)),
        findings=tuple(findings),
        capacity=tuple(_capacity(wanted, sizes.end, peak, now)),
        replacement=mode,
        replacement_reason=reason,
        has_downtime=bool(old) and mode == pb.REPLACEMENT_MODE_RECREATE,
    )


def replicas_of(revision: DesiredRevision) -> int:
    bounds = revision.autoscaling
    return max(1, least_of(bounds)) if bounds is not None else revision.replicas


def _sizes(
    wanted: DesiredState, launches: list[tuple[DesiredRevision, Launch]], old: list[Running]
) -> _Sizes:
    needs = [launch.need * replicas_of(revision) for revision, launch in launches]
    # Of a stable revision and its candidate one is left in the end.
    end = max(needs, key=lambda need: (need.memory_bytes, need.cores), default=Need())
    step = launches[-1][1].need if launches else Need()
    rollout = wanted.spec.rollout
    replicas = max((replicas_of(revision) for revision, _ in launches), default=0)
    surge = min(rollout.max_surge if rollout.HasField("max_surge") else 1, replicas)
    # Old replicas may go first as far as some may be missing.
    spared = min(rollout.max_unavailable, len(old))
    there = sum((replica.need for replica in old), Need())
    given_back = sum((replica.need for replica in old[:spared]), Need())
    surging = there - given_back + step * max(surge, spared)
    return _Sizes(end, end.most(surging), sum(needs, there), step)


def _mode(
    wanted: DesiredState,
    launches: list[tuple[DesiredRevision, Launch]],
    old: list[Running],
    sizes: _Sizes,
    free: Need,
    is_canary: bool,
) -> tuple[pb.ReplacementMode.ValueType, str]:
    asked = wanted.spec.rollout.replacement
    frames = {launch.frame for _, launch in launches}
    can_swap = len(frames) == 1 and "" not in frames and all(each.frame in frames for each in old)
    if is_canary:
        return pb.REPLACEMENT_MODE_SURGE, "a canary runs beside the stable revision"
    if asked == pb.REPLACEMENT_MODE_SWAP_ADAPTER and old and not can_swap:
        return (
            pb.REPLACEMENT_MODE_SURGE,
            "the base model or engine options change, so adapters cannot be swapped",
        )
    return (asked, "as asked for") if asked else _chosen(old, sizes, free, can_swap=can_swap)


def _chosen(
    old: list[Running], sizes: _Sizes, free: Need, *, can_swap: bool
) -> tuple[pb.ReplacementMode.ValueType, str]:
    """Where nothing was asked for: a swap before a surge before a gap in service."""
    if not old:
        return pb.REPLACEMENT_MODE_SURGE, "nothing is replaced"
    if can_swap:
        return (
            pb.REPLACEMENT_MODE_SWAP_ADAPTER,
            "base model and engine options stay, so running replicas load the other adapter",
        )
    if sizes.surge.fits(free):
        return pb.REPLACEMENT_MODE_SURGE, "there is room for a new replica beside the old ones"
    shortage = lack(sizes.surge, free).message
    return pb.REPLACEMENT_MODE_RECREATE, f"there is no room beside the old replicas: the surge {shortage}"


def _room(
    wanted: DesiredState,
    mode: pb.ReplacementMode.ValueType,
    sizes: _Sizes,
    peak: Need,
    now: Situation,
    is_canary: bool,
) -> Iterator[Finding]:
    if not sizes.end.fits(now.free):
        lacking = lack(sizes.end, now.free)
        yield Finding(
            f"INSUFFICIENT_{lacking.resource.upper()}",
            f"the deployment {lacking.message}",
            _FIELDS[lacking.resource],
            True,
        )
    elif not peak.fits(now.free):
        shortage = lack(peak, now.free).message
        how = "a canary beside the stable revision" if is_canary else "a surge"
        recreate = "replacement RECREATE, max_unavailable 1 with max_surge 0"
        way = "a rollout without a canary" if is_canary else recreate
        yield Finding(
            "SURGE_WOULD_DEADLOCK",
            f"{how} {shortage}: it could never finish. What helps: {way}, fewer replicas, or less set aside "
            "for each (resources)",
            "rollout.canary" if is_canary else "rollout.replacement",
            True,
        )
    for revision in wanted.revisions:
        bounds = revision.autoscaling
        if bounds is not None and not (sizes.step * bounds.max_replicas).fits(now.free):
            yield Finding(
                "MAX_REPLICAS_BEYOND_ROOM",
                f"there is no room for {bounds.max_replicas} replicas; autoscaling stops where the room ends",
                "autoscaling.max_replicas",
            )
    asked = wanted.spec.rollout.replacement
    if asked == pb.REPLACEMENT_MODE_SWAP_ADAPTER and mode != asked:
        yield Finding(
            "SWAP_NOT_POSSIBLE",
            "the base model or engine options change, so replicas must be started anew: choose SURGE or "
            "RECREATE",
            "rollout.replacement",
            True,
        )


def _refusals(spec: pb.DeploymentSpec) -> Iterator[Finding]:
    if spec.engine.weight_type == pb.WEIGHT_TYPE_FP16 and not spec.resources.gpus:
        yield Finding("FP16_NEEDS_GPU", "half precision needs a GPU; use BF16", "engine.weight_type", True)
    if spec.autoscaling.custom_metrics:
        yield Finding(
            "CUSTOM_METRICS_UNSUPPORTED", "custom metrics need a cluster", "autoscaling.custom_metrics", True
        )


def _capacity(wanted: DesiredState, end: Need, peak: Need, now: Situation) -> Iterator[Capacity]:
    free = now.free
    amounts: list[tuple[str, Callable[[Need], str], Need]] = [
        ("cpu", lambda need: quantities.of_cores(need.cores), Need(cores=peak.cores)),
        ("memory", lambda need: quantities.of_bytes(need.memory_bytes), Need(memory_bytes=peak.memory_bytes)),
    ]
    if peak.gpus:
        name = wanted.spec.resources.gpu_resource or "nvidia.com/gpu"
        amounts.append((name, lambda need: str(need.gpus), Need(gpus=peak.gpus)))
    for resource, amount, needed in amounts:
        yield Capacity(resource, amount(end), amount(peak), amount(free), needed.fits(free))


def _objects(
    launches: list[tuple[DesiredRevision, Launch]],
    old: list[Running],
    mode: pb.ReplacementMode.ValueType,
    now: Situation,
) -> Iterator[Planned]:
    swapped = list(old) if mode == pb.REPLACEMENT_MODE_SWAP_ADAPTER else []
    going = [] if swapped else list(old)
    for revision, launch in launches:
        alike = [each for each in now.running if each.target == launch.target]
        count = replicas_of(revision)
        for each in alike[:count]:
            yield _planned(each.replica_id, pb.PLANNED_ACTION_UNCHANGED, launch)
        going += alike[count:]
        for _ in range(count - len(alike)):
            if swapped:
                each = swapped.pop(0)
                changes = _changes(each.replica_id, each.description, launch.description(each.replica_id))
                yield _planned(each.replica_id, pb.PLANNED_ACTION_UPDATE, launch, changes)
            else:
                name = f"{now.resource_name}-{next(now.numbers)}"
                yield _planned(name, pb.PLANNED_ACTION_CREATE, launch)
    for each in (*going, *swapped):
        yield Planned("local/v1", "Process", "", each.replica_id, pb.PLANNED_ACTION_DELETE, "")


def _planned(
    replica_id: str, action: pb.PlannedAction.ValueType, launch: Launch, changes: tuple[FieldChange, ...] = ()
) -> Planned:
    return Planned("local/v1", "Process", "", replica_id, action, launch.manifest(replica_id), changes)


def _changes(
    replica_id: str, before: Mapping[str, Any] | None, after: Mapping[str, Any]
) -> tuple[FieldChange, ...]:
    if before is None:
        return ()
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return tuple(
        FieldChange(f"Process/{replica_id}", path, old.get(path, ""), new.get(path, ""))
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path)
    )


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Each value that is no mapping, as JSON, by its path."""
    for name, each in value.items():
        if isinstance(each, Mapping):
            yield from _leaves(each, f"{path}{name}.")
        else:
            yield f"{path}{name}", json.dumps(each)
