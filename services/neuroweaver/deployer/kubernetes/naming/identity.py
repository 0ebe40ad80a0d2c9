"""How objects of a deployment are named and found again, and what of a user's words may stand on them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from neuroweaver.cluster.api import FIELD_MANAGER
from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.cluster.kinds import Object
from neuroweaver.deployer.domain.backend import Key

DEPLOYMENT: Final = "neuroweaver.dev/deployment"
REVISION: Final = "neuroweaver.dev/revision"
ROLE: Final = "neuroweaver.dev/role"
ROUTER: Final = "neuroweaver.dev/router"
"""On the pods of a router: the deployment that they stand before."""
KEY: Final = "neuroweaver.dev/key"
VERSION: Final = "neuroweaver.dev/version"
CONFIG: Final = "neuroweaver.dev/config"
SOURCE: Final = "neuroweaver.dev/source"
LIVENESS: Final = "neuroweaver.dev/liveness"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"

MANAGED: Final = f"{MANAGED_BY}={FIELD_MANAGER}"
"""Selects everything that is the deployer's."""

_DNS_LABEL: Final = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_LONGEST: Final = 45
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?", re.ASCII)
_LABEL_KEY: Final = re.compile(
    r"([a-z0-9]([a-z0-9.-]{0,188}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", re.ASCII
)
_RESERVED: Final = re.compile(r"([a-z0-9.-]*[.])?(kubernetes[.]io|k8s[.]io|neuroweaver[.]dev)/.*", re.ASCII)


def check_name(name: str) -> None:
    """Leaves room for the suffix, `-r` and a revision. Raises BackendError."""
    if not _DNS_LABEL.fullmatch(name) or len(name) > _LONGEST:
        raise BackendError(
            Trouble.REFUSED,
            f"{name!r} is not a DNS label that begins with a letter and has at most {_LONGEST} characters",
        )


def of_revision(name: str, number: int) -> str:
    """What the objects of one revision are called."""
    return f"{name}-r{number}"


def selector(name: str) -> str:
    return f"{MANAGED},{DEPLOYMENT}={name}"


def checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """A user's labels. Raises BackendError for a bad one, before anything is applied."""
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key) or _RESERVED.fullmatch(key):
            words = f"{key!r} cannot be a label: it is malformed, or reserved"
            raise BackendError(Trouble.REFUSED, words, field="spec.labels")
        if not _LABEL_VALUE.fullmatch(value):
            raise BackendError(
                Trouble.REFUSED, f"{value!r} cannot be a label's value", field=f"spec.labels[{key}]"
            )
    return dict(sorted(labels.items()))


def key_annotation(key: Key) -> str:
    """Annotations may hold anything, so no character of a name is lost."""
    return json.dumps([key.project, key.model_id, key.name])


def key_of(found: Object) -> Key | None:
    """The deployment that an object belongs to; None if it has no readable annotation."""
    key = found["metadata"].get("annotations", {}).get(KEY)
    try:
        project, model_id, name = json.loads(key or "null")
    except (ValueError, TypeError):
        return None
    return Key(str(project), str(model_id), str(name))


def revision_of(found: Object) -> int:
    """0 if it belongs to none."""
    number: Any = found["metadata"].get("labels", {}).get(REVISION, "")
    return int(number) if str(number).isdecimal() else 0
