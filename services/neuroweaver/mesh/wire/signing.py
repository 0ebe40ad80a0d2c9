"""Signatures over the head of the audit chain, so that a head kept elsewhere proves who gave it out.

Ed25519 (RFC 8032). The signed bytes of a head, integers big-endian:

    "neuroweaver-audit-head-v1" and a zero byte
    length of the project in bytes   4 bytes, unsigned
    the project                      UTF-8
    sequence of the last event       8 bytes, unsigned
    its hash                         32 bytes, SHA-256
    when it was signed               8 bytes, signed: microseconds since 1970-01-01 UTC
"""

from __future__ import annotations

import hashlib
import re
import struct
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from neuroweaver.mesh.wire import key_file
from neuroweaver.mesh.wire.clock import microseconds
from neuroweaver.mesh.wire.environment import SettingsError

_DOMAIN: Final = b"neuroweaver-audit-head-v1\0"
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class SigningKey:
    """A private key. Its text and its representation tell the key's id alone."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key: Final = private.public_key().public_bytes_raw()
        """32 bytes."""
        self.key_id: Final = hashlib.sha256(self.public_key).hexdigest()[:16]

    @classmethod
    def load_or_create(cls, path: Path) -> SigningKey:
        """The key in a file of PEM; see `key_file.load_or_create`.

        Raises SettingsError if the file is no such key or not a secret, OSError if it cannot be read or made.
        """
        pem = key_file.load_or_create(path, "signing key", _new_pem)
        try:
            private = load_pem_private_key(pem, password=None)
        except (TypeError, ValueError):  # their texts could repeat a part of the key
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise SettingsError(f"the signing key {path} is no Ed25519 private key in PEM without a password")
        return cls(private)

    def sign(self, message: bytes) -> bytes:
        """64 bytes, always the same for the same message."""
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the owner of a key of 32 bytes signed the message."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def statement(project: str, sequence: int, head_hash: str, time: datetime) -> bytes:
    """What is signed of a head. head_hash: hexadecimal. Raises ValueError for what no head can hold."""
    if _SHA256.fullmatch(head_hash) is None:
        raise ValueError("the hash is not SHA-256 in lower-case hexadecimal")
    if not 0 <= sequence < 1 << 63:
        raise ValueError("the sequence is not between 0 and 2**63 - 1")
    if time.tzinfo is None:
        raise ValueError("the time has no zone")
    name = project.encode()
    return b"".join([
        _DOMAIN,
        struct.pack(">I", len(name)),
        name,
        struct.pack(">Q", sequence),
        bytes.fromhex(head_hash),
        struct.pack(">q", microseconds(time)),
    ])  # fmt: skip


def _new_pem() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
