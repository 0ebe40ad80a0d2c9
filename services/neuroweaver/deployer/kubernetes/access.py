"""Which rights the backend needs in a namespace, and whether it has them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from neuroweaver.deployer.kubernetes.api import Api
from neuroweaver.deployer.kubernetes.failures import forbidden
from neuroweaver.deployer.kubernetes.kinds import OWNED, Kind

OBJECT_VERBS: Final = ("get", "list", "watch", "create", "patch", "delete")
OTHERS: Final = (
    ("list", "", "pods"),
    ("watch", "", "pods"),
    ("get", "", "pods/log"),
    ("list", "apps", "replicasets"),
    ("delete", "apps", "replicasets"),
)
"""What else it needs: verb, group, resource."""


def needed(custom: Iterable[Kind]) -> list[tuple[str, str, str]]:
    """custom: kinds of CustomResourceDefinitions that are used."""
    kinds = [kind for kind in OWNED if not kind.is_custom] + sorted(custom, key=lambda kind: kind.name)
    return [(verb, kind.group, kind.plural) for kind in kinds for verb in OBJECT_VERBS] + list(OTHERS)


async def check(api: Api, namespace: str, custom: Iterable[Kind]) -> None:
    """Raises BackendError FORBIDDEN naming the first right that is missing: verb, resource, namespace."""
    rights = needed(custom)
    # A group at a time, so that the credentials' own rate limit is not spent at once.
    answers: list[bool] = []
    for start in range(0, len(rights), 16):
        answers += await asyncio.gather(
            *(
                api.may(verb, group, resource, namespace)
                for verb, group, resource in rights[start : start + 16]
            )
        )
    for (verb, group, resource), is_allowed in zip(rights, answers, strict=True):
        if not is_allowed:
            raise forbidden(verb, f"{resource}.{group}" if group else resource, namespace)
