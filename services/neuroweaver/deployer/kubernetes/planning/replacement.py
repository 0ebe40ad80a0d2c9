"""Whether new replicas come before the old ones go (surge) or after (recreate), and what would never end.

Swapping an adapter in running pods is not offered: a pod that is started again would come back with another
adapter than its siblings have, and nobody could see which one answers. A new revision's pods are verified
before they get traffic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from neuroweaver.cluster import quantities
from neuroweaver.cluster.kinds import Object, is_going
from neuroweaver.deployer.domain.backend import Capacity, DesiredState, Finding
from neuroweaver.deployer.kubernetes.manifests.scaling import least_replicas
from neuroweaver.deployer.kubernetes.naming import identity
from neuroweaver.deployer.kubernetes.observing import observation
from neuroweaver.deployer.kubernetes.planning import capacity
from neuroweaver.deployer.kubernetes.planning.capacity import Node
from neuroweaver.v1 import deployer_pb2 as pb


@dataclass(frozen=True)
class Decision:
    mode: pb.ReplacementMode.ValueType
    reason: str
    has_downtime: bool
    findings: tuple[Finding, ...] = ()
    capacity: tuple[Capacity, ...] = ()


@dataclass(frozen=True)
class Room:
    """nodes: None if it could not be learned. all_pods: of the whole cluster, the deployment's own among
    them.
    """

    nodes: Sequence[Object] | None
    all_pods: Sequence[Object] = ()
    why_unknown: str = ""


def decide(
    wanted: DesiredState,
    own_pods: Iterable[Object],
    pod_spec: Object | None,
    room: Room,
    *,
    nodes_may_come: bool,
    changes_pods: bool = False,
) -> Decision:
    """pod_spec: of a desired pod; None without a revision. changes_pods: pods of a revision that stays
    change, so that the Deployment replaces them itself.
    """
    asked = wanted.replacement or wanted.spec.rollout.replacement
    counts = {revision.number: least_replicas(revision) for revision in wanted.revisions}
    alive = [pod for pod in own_pods if not is_going(pod) and not observation.is_over(pod)]
    new = _at_once(wanted, counts, alive)
    if changes_pods and alive:
        new += _surge(wanted)
    replaces = changes_pods or any(identity.revision_of(pod) not in counts for pod in alive)
    shown = _Reckoning(wanted, counts, new, pod_spec, room)
    findings = list(_findings_of_wish(wanted, counts))
    if asked == pb.REPLACEMENT_MODE_SWAP_ADAPTER:
        findings.append(
            Finding(
                "SWAP_NOT_POSSIBLE",
                "on Kubernetes, another adapter needs new pods: choose SURGE or RECREATE",
                "spec.rollout.replacement",
                is_blocking=True,
            )
        )
    if shown.nodes is None:
        if room.why_unknown:
            findings.append(Finding("CAPACITY_UNKNOWN", room.why_unknown))
        is_recreating = asked == pb.REPLACEMENT_MODE_RECREATE
        mode = asked if is_recreating else pb.REPLACEMENT_MODE_SURGE
        return Decision(
            mode,
            "as asked for" if asked else "free capacity is unknown",
            is_recreating and bool(alive) and replaces,
            tuple(findings),
            shown.capacity(None),
        )
    # Replicas that stay where they are need no room anew, whatever became of their nodes.
    fits_alone = shown.fits_without(alive, sum(counts.values())) or (not replaces and shown.fits(new))
    fits_beside = shown.fits(new) and fits_alone
    mode, reason, obstacle = _choose(asked, shown, fits_beside, fits_alone, has_old=bool(alive) and replaces)
    if obstacle:
        findings.append(replace(obstacle, is_blocking=not nodes_may_come))
    is_enough = fits_alone if mode == pb.REPLACEMENT_MODE_RECREATE else fits_beside
    return Decision(
        mode,
        reason,
        replaces and bool(alive) and _has_gap(wanted, mode, sum(counts.values())),
        tuple(findings),
        shown.capacity(is_enough),
    )


def _choose(
    asked: pb.ReplacementMode.ValueType,
    shown: _Reckoning,
    fits_beside: bool,
    fits_alone: bool,
    *,
    has_old: bool,
) -> tuple[pb.ReplacementMode.ValueType, str, Finding | None]:
    no_room = Finding(shown.lack(), shown.says("even without the old replicas"), "spec.resources")
    if asked == pb.REPLACEMENT_MODE_RECREATE:
        return pb.REPLACEMENT_MODE_RECREATE, "as asked for", None if fits_alone else no_room
    if fits_beside:
        reason = "there is room for old and new replicas" if has_old else "nothing is replaced"
        return pb.REPLACEMENT_MODE_SURGE, "as asked for" if asked else reason, None
    if not has_old and not shown.is_canary:
        return pb.REPLACEMENT_MODE_SURGE, "nothing is replaced", replace(no_room, message=shown.says("now"))
    if not fits_alone:
        return pb.REPLACEMENT_MODE_SURGE, "there is no room, with or without the old replicas", no_room
    if asked == pb.REPLACEMENT_MODE_SURGE or shown.is_canary:
        why, way_out = "SURGE starts new replicas first", ""
        if shown.is_canary:
            why, way_out = "a canary runs beside the stable revision", "remove the canary and "
        message = (
            f"{why}, and {shown.says('beside the old ones')}: the rollout could never finish. "
            f"{way_out}set rollout.replacement to RECREATE, lower replicas, or add nodes"
        )
        deadlock = Finding("SURGE_WOULD_DEADLOCK", message, "spec.rollout.replacement")
        return pb.REPLACEMENT_MODE_SURGE, "as asked for" if asked else why, deadlock
    return pb.REPLACEMENT_MODE_RECREATE, shown.says("beside the old ones"), None


class _Reckoning:
    """The figures of one decision."""

    def __init__(
        self,
        wanted: DesiredState,
        counts: Mapping[int, int],
        new_pods: int,
        pod_spec: Object | None,
        room: Room,
    ) -> None:
        self._counts = counts
        self._new = new_pods
        self._room = room
        self._spec = pod_spec or {}
        self._pod = capacity.pod_requests(self._spec)
        self.is_canary = wanted.spec.rollout.HasField("canary") and len(wanted.revisions) > 1
        self.nodes = self._usable(room.all_pods) if room.nodes else None

    def fits(self, new_pods: int) -> bool:
        return new_pods == 0 or capacity.room_for(self._pod, self.nodes or ()) >= new_pods

    def fits_without(self, gone: Sequence[Object], all_pods: int) -> bool:
        """Once the deployment's own pods have left."""
        uids = {pod["metadata"]["uid"] for pod in gone}
        kept = [pod for pod in self._room.all_pods if pod["metadata"]["uid"] not in uids]
        return all_pods == 0 or capacity.room_for(self._pod, self._usable(kept)) >= all_pods

    def lack(self) -> str:
        """What there is too little of."""
        if self._is_shut_out:
            return "NO_NODE"
        return observation.lack_of(self._scarce()) or "NO_ROOM"

    def says(self, when: str) -> str:
        wanted = ", ".join(
            f"{quantities.written(amount)} {name}" for name, amount in sorted(self._pod.items())
        )
        if self._is_shut_out:
            why = (
                f"no node, of {len(self._room.nodes or ())}, is ready, has the labels asked for, and "
                "has only taints that are tolerated"
            )
        else:
            why = f"there is room for {capacity.room_for(self._pod, self.nodes or ())}"
        return f"{self._new} new replicas of {wanted} each do not fit {when}: {why}"

    @property
    def _is_shut_out(self) -> bool:
        """Whether there are nodes, and none that a replica may come to, however much room it has."""
        return self.nodes is not None and not self.nodes

    def capacity(self, is_enough: bool | None) -> tuple[Capacity, ...]:
        total = sum(self._counts.values())
        return tuple(
            Capacity(
                resource=name,
                required=quantities.written(amount * total),
                peak_required=quantities.written(amount * self._new),
                available="" if self.nodes is None else quantities.written(capacity.free(self.nodes, name)),
                is_sufficient=is_enough,
            )
            for name, amount in sorted(self._pod.items())
        )

    def _scarce(self) -> str:
        """The resource of which alone there is room for the fewest."""
        alone = {
            name: capacity.room_for({name: amount}, self.nodes or ())
            for name, amount in self._pod.items()
            if amount > Decimal(0)
        }
        # Of two that are as scarce, the one that is harder to come by.
        return min(alone, key=lambda name: (alone[name], "/" not in name, name), default="")

    def _usable(self, pods: Sequence[Object]) -> list[Node]:
        return capacity.usable_nodes(
            self._room.nodes or (),
            pods,
            self._spec.get("nodeSelector") or {},
            self._spec.get("tolerations") or (),
        )


def _findings_of_wish(wanted: DesiredState, counts: Mapping[int, int]) -> Iterable[Finding]:
    options = wanted.spec.kubernetes
    most = max(counts.values(), default=0)
    if options.HasField("min_available") and most >= 2 and options.min_available >= most:
        yield Finding(
            "DRAIN_WOULD_BLOCK",
            f"min_available keeps {options.min_available} of {most} replicas, so no node could ever be "
            "drained",
            "spec.kubernetes.min_available",
            is_blocking=True,
        )


def _at_once(wanted: DesiredState, counts: Mapping[int, int], alive: Iterable[Object]) -> int:
    """New pods that there are beside the old ones at a time: a rollout takes old ones away as new ones are
    ready, so that there are never more than the number wanted and `max_surge`.
    """
    on_nodes = (pod for pod in alive if pod.get("spec", {}).get("nodeName"))
    placed = Counter(map(identity.revision_of, on_nodes))
    missing = sum(max(0, count - placed[number]) for number, count in counts.items())
    old = sum(count for number, count in placed.items() if number not in counts)
    if not old:
        return missing
    return min(missing, max(0, sum(counts.values()) + _surge(wanted) - old))


def _surge(wanted: DesiredState) -> int:
    if wanted.replacement == pb.REPLACEMENT_MODE_RECREATE:
        return 0
    rollout = wanted.spec.rollout
    return rollout.max_surge if rollout.HasField("max_surge") else 1


def _has_gap(wanted: DesiredState, mode: pb.ReplacementMode.ValueType, replicas: int) -> bool:
    if mode == pb.REPLACEMENT_MODE_RECREATE:
        return True
    return _surge(wanted) == 0 and wanted.spec.rollout.max_unavailable >= replicas
