"""Requests and texts fit for a log: no secrets, no megabytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

HIDDEN: Final = "[redacted]"
_MAX_TEXT: Final = 500
_MAX_ITEMS: Final = 20

# `page_token` and `max_tokens` are no secrets; `token`, `lease_token` and `access_token` are.
_SECRET: Final = re.compile(
    r"secret|password|passwd|passphrase|credential|authorization|bearer|cookie|private_?key|api_?key"
    r"|(?<!page)(?<!page_)token$",
    re.IGNORECASE,
)
_KEY_LIKE: Final = re.compile(r"\b(?:sk|pk|key)-[\w*.-]{4,}|\bhf_\w{8,}|(?i:\bbearer\s+)\S+")
# What stands before the host of an address, and its query.
_IN_ADDRESS: Final = re.compile(r"(?<=://)[^\s/@]+(?=@)|(?<=\?)[\w.-]+=[^\s\"'<>]*")
# Shorter values stand in other words.
_SHORTEST_SECRET: Final = 8


def secrets_of(environ: Mapping[str, str]) -> frozenset[str]:
    """The values of variables that are secret by their name."""
    return frozenset(
        value for name, value in environ.items() if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET
    )


def redacted_text(text: str, secrets: Iterable[str]) -> str:
    """The text without `secrets`, credentials and queries of addresses, and what looks like a key."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _KEY_LIKE.sub(HIDDEN, _IN_ADDRESS.sub(HIDDEN, text))


def redacted(message: Message) -> dict[str, Any]:
    """The fields that are set, secret ones hidden: by `debug_redact` in the .proto file or by their name."""
    return {field.name: _field(field, value) for field, value in message.ListFields()}


def _field(field: FieldDescriptor, value: Any) -> Any:
    if field.GetOptions().debug_redact or _SECRET.search(field.name):
        return HIDDEN
    if field.message_type and field.message_type.GetOptions().map_entry:
        items = list(value.items())[:_MAX_ITEMS]
        return {str(key): HIDDEN if _SECRET.search(str(key)) else _value(held) for key, held in items}
    if field.is_repeated:
        return [_value(item) for item in value[:_MAX_ITEMS]]
    return _value(value)


def _value(value: Any) -> Any:
    if isinstance(value, Message):
        return redacted(value)
    if isinstance(value, bytes):
        return f"[{len(value)} bytes]"
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        return f"{value[:_MAX_TEXT]}… [{len(value)} characters]"
    return value
