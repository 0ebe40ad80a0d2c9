"""Which rights the backend needs in a namespace, and whether it has them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from neuroweaver.cluster.api import Api
from neuroweaver.cluster.failures import forbidden
from neuroweaver.cluster.kinds import OWNED, Kind
from neuroweaver.deployer.domain.backend import Finding

OBJECT_VERBS: Final = ("get", "list", "watch", "create", "patch", "delete")
OTHERS: Final = (
    ("list", "", "pods"),
    ("watch", "", "pods"),
    ("get", "", "pods/log"),
    ("list", "apps", "replicasets"),
    ("delete", "apps", "replicasets"),
)
"""What else it needs: verb, group, resource."""
_TOLD_BY_USE: Final = "CPU and memory use is then known from the replicas' own metrics only"
_FROM_OUTSIDE: Final = "from outside the cluster, the replicas' health and metrics stay unknown"


def needed(custom: Iterable[Kind]) -> list[tuple[str, str, str]]:
    """custom: kinds of CustomResourceDefinitions that are used."""
    kinds = [kind for kind in OWNED if not kind.is_custom] + sorted(custom, key=lambda kind: kind.name)
    return [(verb, kind.group, kind.plural) for kind in kinds for verb in OBJECT_VERBS] + list(OTHERS)


async def lacking(api: Api, namespace: str) -> list[Finding]:
    """The missing ones among the rights without which a deployment still comes to be, and what follows."""
    wished = [("list", "metrics.k8s.io", "pods", namespace, _TOLD_BY_USE)]
    if not api.is_inside:
        wished.append(("get", "", "pods/proxy", namespace, _FROM_OUTSIDE))
    answers = await asyncio.gather(*(api.may(*right) for *right, _ in wished))
    return [
        Finding("RIGHT_MISSING", f"{forbidden(verb, _named(group, resource), where)}: {consequence}")
        for (verb, group, resource, where, consequence), is_allowed in zip(wished, answers, strict=True)
        if not is_allowed
    ]


async def check(api: Api, namespace: str, custom: Iterable[Kind]) -> None:
    """Raises BackendError FORBIDDEN naming the first right that is missing: verb, resource, namespace."""
    rights = needed(custom)
    # A group at a time, so that the credentials' own rate limit is not spent at once.
    answers: list[bool] = []
    for start in range(0, len(rights), 16):
        part = rights[start : start + 16]
        answers += await asyncio.gather(*(api.may(*right, namespace) for right in part))
    for (verb, group, resource), is_allowed in zip(rights, answers, strict=True):
        if not is_allowed:
            raise forbidden(verb, _named(group, resource), namespace)


def _named(group: str, resource: str) -> str:
    return f"{resource}.{group}" if group else resource
