"""Where a pod has the base model of its adapter from: a volume of base models, or the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from neuroweaver.cluster.errors import BackendError, Trouble
from neuroweaver.cluster.kinds import Object
from neuroweaver.deployer.domain.backend import DesiredRevision
from neuroweaver.deployer.kubernetes.settings import ClusterSettings

_FOLDER: Final = "/models/base"
_NAME: Final = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?)"
    r"(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._-]*))?",
    re.ASCII,
)


@dataclass(frozen=True)
class BaseModel:
    """name: `organisation/name`, without the `@revision` that a trainer may have been asked for. digest:
    of the weights; empty if the version names none. claim: empty if the pod fetches it from the hub.
    is_pinned: whether the version names any digest, be it of the tokenizer.
    """

    name: str
    revision: str
    digest: str
    claim: str
    is_pinned: bool

    @property
    def folder(self) -> str:
        return f"{_FOLDER}/{self.name}"

    @property
    def is_from_hub(self) -> bool:
        return not self.claim

    def volume(self) -> Object:
        if self.is_from_hub:
            return {"name": "base", "emptyDir": {}}
        return {"name": "base", "persistentVolumeClaim": {"claimName": self.claim, "readOnly": True}}

    def mount(self) -> Object:
        """For what reads it."""
        return {"name": "base", "mountPath": _FOLDER, "readOnly": True}

    def supply_mounts(self) -> list[Object]:
        """For the init container: what it fetches into, or what it has to verify."""
        if self.is_from_hub:
            return [{"name": "base", "mountPath": _FOLDER}]
        return [self.mount()] if self.is_pinned else []

    def order(self) -> dict[str, Any]:
        """The part of the init container's configuration."""
        order: dict[str, Any] = {"base_folder": self.folder, "base_digest": self.digest}
        if self.is_from_hub:
            return order | {"hub": {"repository": self.name, "revision": self.revision}}
        return order if self.is_pinned else {}


def base_model(revision: DesiredRevision, settings: ClusterSettings) -> BaseModel | None:
    """None if there is no adapter. Raises BackendError for what can be the name of no base model."""
    name = revision.bundle.base_name
    if not name:
        return None
    match = _NAME.fullmatch(name)
    if match is None or ".." in name:
        raise BackendError(
            Trouble.REFUSED,
            f"the base model {name!r} is not named `organisation/name`, so pods cannot find it",
        )
    bundle = revision.bundle
    pinned = (bundle.base_model_digest, bundle.base_tokenizer_digest, bundle.base_chat_template_digest)
    return BaseModel(
        match["name"], match["revision"] or "", bundle.base_model_digest, settings.base_claim, any(pinned)
    )


def hub_environment(settings: ClusterSettings) -> list[Object]:
    """huggingface_hub's own variables. Its other way to fetch (Xet) takes more memory than the container has,
    and mirrors lack it; progress would be all that the termination message had room for.
    """
    names = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY")
    values = dict.fromkeys(names, "1") | {"HF_HUB_VERBOSITY": "error"}
    if settings.hub_url:
        values["HF_ENDPOINT"] = settings.hub_url
    made: list[Object] = [{"name": name, "value": value} for name, value in values.items()]
    if settings.hub_token_secret:
        key = {"name": settings.hub_token_secret, "key": "token"}
        made.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": key}})
    return made
