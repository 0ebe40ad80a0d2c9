"""Whether there is room, node by node: two halves of a GPU on two nodes are no GPU.

Counts what the scheduler counts: allocatable less the requests of the pods on each node. Affinities and
quotas are not looked at; a pod that waits for them says so itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from neuroweaver.cluster import quantities
from neuroweaver.cluster.kinds import Object

Amounts = Mapping[str, Decimal]
_NEVER_RESTARTS = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True)
class Node:
    name: str
    free: Mapping[str, Decimal]

    def holds(self, pod: Amounts) -> int:
        """How many such pods fit."""
        fits = self.free.get("pods", Decimal(0))
        for resource, amount in pod.items():
            if amount > 0:
                fits = min(fits, self.free.get(resource, Decimal(0)) // amount)
        return max(0, math.floor(fits))


def room_for(pod: Amounts, nodes: Iterable[Node]) -> int:
    return sum(node.holds(pod) for node in nodes)


def free(nodes: Iterable[Node], resource: str) -> Decimal:
    return sum((max(Decimal(0), node.free.get(resource, Decimal(0))) for node in nodes), Decimal(0))


def usable_nodes(
    nodes: Iterable[Object],
    pods: Iterable[Object],
    selector: Mapping[str, str],
    tolerations: Iterable[Object],
) -> list[Node]:
    """Nodes that a pod with this selector and these tolerations may come to, with what `pods` leave of
    them.
    """
    used: dict[str, dict[str, Decimal]] = {}
    for pod in pods:
        node_name = pod.get("spec", {}).get("nodeName")
        if node_name and (pod.get("status") or {}).get("phase") not in _NEVER_RESTARTS:
            _add(used.setdefault(node_name, {}), pod_requests(pod["spec"]) | {"pods": Decimal(1)})
    known = list(tolerations)
    usable = []
    for node in nodes:
        if _accepts(node, selector, known):
            name, allocatable = node["metadata"]["name"], (node.get("status") or {}).get("allocatable") or {}
            left = {resource: quantities.parse(amount) for resource, amount in allocatable.items()}
            _add(left, {resource: -amount for resource, amount in used.get(name, {}).items()})
            usable.append(Node(name, left))
    return usable


def pod_requests(spec: Object) -> dict[str, Decimal]:
    """What a node must have for a pod: its containers together, or an init container that wants more."""
    total: dict[str, Decimal] = {}
    for container in spec.get("containers") or ():
        _add(total, _requests(container))
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            _add(total, _requests(container))
        else:
            for resource, amount in _requests(container).items():
                total[resource] = max(total.get(resource, Decimal(0)), amount)
    _add(total, {name: quantities.parse(amount) for name, amount in (spec.get("overhead") or {}).items()})
    return total


def _requests(container: Object) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    # What is limited and not requested is requested as limited.
    asked = (resources.get("limits") or {}) | (resources.get("requests") or {})
    return {name: quantities.parse(amount) for name, amount in asked.items()}


def _add(total: dict[str, Decimal], more: Mapping[str, Decimal]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, Decimal(0)) + amount


def _accepts(node: Object, selector: Mapping[str, str], tolerations: list[Object]) -> bool:
    spec, status = node.get("spec") or {}, node.get("status") or {}
    labels = node["metadata"].get("labels") or {}
    is_ready = any(
        each.get("type") == "Ready" and each.get("status") == "True"
        for each in status.get("conditions") or ()
    )
    repelling = (
        taint for taint in spec.get("taints") or () if taint.get("effect") in {"NoSchedule", "NoExecute"}
    )
    return (
        is_ready
        and not spec.get("unschedulable")
        and all(labels.get(key) == value for key, value in selector.items())
        and all(any(_tolerates(each, taint) for each in tolerations) for taint in repelling)
    )


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return not toleration.get("key") or toleration["key"] == taint.get("key")
    return toleration.get("key") == taint.get("key") and toleration.get("value", "") == taint.get("value", "")
