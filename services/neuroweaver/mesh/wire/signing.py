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
import os
import re
import secrets
import stat
import struct
from contextlib import suppress
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

from neuroweaver.mesh.wire.clock import microseconds
from neuroweaver.mesh.wire.environment import SettingsError

_DOMAIN: Final = b"neuroweaver-audit-head-v1\0"
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAX_KEY_BYTES: Final = 16 * 1024

_OTHERS: Final = stat.S_IRWXO
_GROUP: Final = stat.S_IRWXG


class SigningKey:
    """A private key. Its text and its representation tell the key's id alone."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key: Final = private.public_key().public_bytes_raw()
        """32 bytes."""
        self.key_id: Final = hashlib.sha256(self.public_key).hexdigest()[:16]

    @classmethod
    def load_or_create(cls, path: Path) -> SigningKey:
        """The key in a file of PEM, made with one if there is none; of several processes all get the same.

        Raises SettingsError if the file is no such key or not a secret, OSError if it cannot be read or made.
        """
        try:
            return cls._load(path)
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(path)
            return cls._load(path)

    @classmethod
    def _load(cls, path: Path) -> SigningKey:
        # Not waiting for a writer, if it is a pipe.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            # Of the open file: the path could lead to another one by now.
            _check_secret(path, os.fstat(file.fileno()))
            pem = file.read(_MAX_KEY_BYTES)
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


def _check_secret(path: Path, status: os.stat_result) -> None:
    """Raises SettingsError that says how to mend it.

    A group may read a file of another owner: so Kubernetes gives a secret to a process that is not root.
    """
    is_own = status.st_uid == os.geteuid()
    if not stat.S_ISREG(status.st_mode):
        raise SettingsError(f"the signing key {path} is not a file")
    if not is_own and status.st_uid != 0:
        raise SettingsError(f"the signing key {path} belongs to another user: run chown {os.geteuid()} on it")
    if status.st_mode & (_OTHERS | (_GROUP if is_own else stat.S_IWGRP)):
        mode = "600" if is_own else "440"
        raise SettingsError(f"the signing key {path} is open to other users: run chmod {mode} on it")


def _create(path: Path) -> None:
    """A new key under `path`, whole and on disk, unless another process was faster."""
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename, a link never takes the place of a file that is there.
        with suppress(FileExistsError):
            path.hardlink_to(partial)
    finally:
        partial.unlink()
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
