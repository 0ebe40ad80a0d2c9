"""What the objects of a deployment are called, wherever they are made."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from neuroweaver.deployer.domain.backend import Key

_PREFIX: Final = "nw"
_MODEL_LENGTH: Final = 20
_NAME_LENGTH: Final = 10
_HASH_LENGTH: Final = 10


def resource_name(key: Key) -> str:
    """A DNS label of at most 45 characters that begins with a letter; room is left for what is hung on to it.

    The readable part is for people. The hash is over all of project, model and name, so that no two
    deployments share a name, however they are cut or joined.
    """
    whole = f"{key.project}\0{key.model_id}\0{key.name}"
    digest = base64.b32encode(hashlib.sha256(whole.encode()).digest()).decode().lower()[:_HASH_LENGTH]
    parts = (_PREFIX, _cut(key.model_id, _MODEL_LENGTH), _cut(key.name, _NAME_LENGTH), digest)
    return "-".join(part for part in parts if part)


def _cut(text: str, length: int) -> str:
    readable = "".join(
        character if character.isascii() and character.isalnum() else "-" for character in text.lower()
    )
    return readable[:length].strip("-")
