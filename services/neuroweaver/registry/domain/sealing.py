"""Webhooks' secrets as the database keeps them: sealed with a key that lies in a file beside it.

AES-SIV (RFC 5297): a webhook's secret is always sealed alike, and opens for no other webhook.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from neuroweaver.mesh.wire import key_file
from neuroweaver.mesh.wire.environment import SettingsError
from neuroweaver.registry.domain.webhook import SECRET_PREFIX

_KEY_BITS = 512


class SealBroken(Exception):
    """A secret was sealed with another key, or for another webhook."""


class Seal:
    def __init__(self, key: bytes) -> None:
        """Raises ValueError for a key that is not of 64 bytes."""
        if len(key) * 8 != _KEY_BITS:
            raise ValueError("a key has 64 bytes")
        self._cipher = AESSIV(key)

    @classmethod
    def load_or_create(cls, path: Path) -> Seal:
        """Of the key in a file; raises as `key_file.load_or_create`."""
        text = key_file.load_or_create(path, "webhook key", _new_key)
        try:
            return cls(base64.b64decode(text.strip(), validate=True))
        except ValueError:  # its text could repeat a part of the key
            raise SettingsError(f"the webhook key {path} is no 64 bytes in base64") from None

    def seal(self, secret: str, project: str, webhook_id: str) -> str:
        raw = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
        return base64.b64encode(self._cipher.encrypt(raw, _owner(project, webhook_id))).decode()

    def open(self, sealed: str, project: str, webhook_id: str) -> str:
        """Raises SealBroken."""
        try:
            raw = self._cipher.decrypt(base64.b64decode(sealed, validate=True), _owner(project, webhook_id))
        except (InvalidTag, binascii.Error, ValueError) as error:
            raise SealBroken from error
        return SECRET_PREFIX + base64.b64encode(raw).decode()

    def opens(self, sealed: str, project: str, webhook_id: str) -> bool:
        try:
            self.open(sealed, project, webhook_id)
        except SealBroken:
            return False
        return True


def is_sealed(secret: str) -> bool:
    """Whether a stored secret is sealed: the prefix has a character that base64 lacks."""
    return not secret.startswith(SECRET_PREFIX)


def _owner(project: str, webhook_id: str) -> list[bytes]:
    return [project.encode(), webhook_id.encode()]


def _new_key() -> bytes:
    return base64.b64encode(AESSIV.generate_key(_KEY_BITS)) + b"\n"
