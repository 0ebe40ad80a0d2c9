"""Heads of the audit chain that are kept elsewhere: read, written, and their signatures checked."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection
from datetime import UTC
from pathlib import Path
from typing import Final

from google.protobuf import json_format

from neuroweaver.mesh.wire import signing
from neuroweaver.v1 import registry_pb2 as registry

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_KEY_ID_DIGITS: Final = 16


class NotAHead(Exception):
    """The file is not an audit head."""


class NotSigned(Exception):
    """The head does not have the signature that it should."""


def read(path: Path) -> registry.AuditHead:
    """Raises NotAHead for a file that is none, OSError for one that cannot be read."""
    try:
        head = json_format.Parse(path.read_text(encoding="utf-8"), registry.AuditHead())
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise NotAHead(f"{path} is not an audit head, as `model verify --export` writes it") from error
    if head.sequence < 0 or _SHA256.fullmatch(head.hash) is None:
        raise NotAHead(f"{path} names no event of an audit chain")
    return head


def write(path: Path, head: registry.AuditHead) -> None:
    """Atomic: if the machine stops, there is the whole head or what was there before."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(json_format.MessageToJson(head, preserving_proto_field_name=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def check(head: registry.AuditHead, trusted_key_ids: Collection[str]) -> None:
    """Raises NotSigned unless one of these keys signed it; if there are none, the key that it names."""
    if not head.signature:
        raise NotSigned("it has no signature")
    if key_id_of(head.public_key) != head.key_id:
        raise NotSigned(f"its public key is not {head.key_id}, the key that it names")
    if trusted_key_ids and head.key_id not in trusted_key_ids:
        raise NotSigned(
            f"it is signed by the key {head.key_id}, not by {' or '.join(sorted(trusted_key_ids))}"
        )
    if not signing.verify(head.public_key, statement(head), head.signature):
        raise NotSigned(f"its signature is not by the key {head.key_id}")


def key_id_of(public_key: bytes) -> str:
    return hashlib.sha256(public_key).hexdigest()[:_KEY_ID_DIGITS]


def statement(head: registry.AuditHead) -> bytes:
    """What is signed of a head. Raises ValueError for an invalid hash."""
    time = head.time.ToDatetime(tzinfo=UTC)
    return signing.statement(head.project, head.sequence, head.hash, time)
