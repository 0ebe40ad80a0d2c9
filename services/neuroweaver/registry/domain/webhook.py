"""Webhooks: which changes they want, where they may point, and how what is sent is signed.

The form is that of https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from urllib.parse import quote

import httpx2
from google.protobuf import json_format
from google.protobuf.message import Message

from neuroweaver.mesh.wire.clock import SKEW
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.registry.domain.addresses import is_address, is_loopback, is_public
from neuroweaver.registry.domain.model import check_model_id

MAX_WEBHOOKS: Final = 100
"""A project's. Each costs every change a row, in the change's own transaction."""

SECRET_PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = 32

_HOST_NAME: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")
_GONE: Final = 410
_ERROR_CHARACTERS: Final = 200
_JITTER: Final = 0.25
_MAX_BACKOFF_S: Final = 3600.0
# Nothing is planned further ahead; a clock that was set back since left it.
_LONGEST_WAIT: Final = timedelta(seconds=_MAX_BACKOFF_S) + SKEW


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """Without its secret, which is nobody's but the signer's."""

    webhook_id: str
    url: str
    actions: tuple[str, ...] = ()
    model_id: str = ""
    create_time: datetime

    def check(self) -> None:
        """Raises InvalidArgument."""
        check_webhook_id("webhook.webhook_id", self.webhook_id)
        check_url("webhook.url", self.url)
        if self.model_id:
            check_model_id("webhook.model_id", self.model_id)

    def wants(self, action: str, model_id: str) -> bool:
        return (not self.model_id or self.model_id == model_id) and (
            not self.actions or any(_is_meant(pattern, action) for pattern in self.actions)
        )

    @property
    def shown_url(self) -> str:
        """The URL without its query, where receivers like to have a token."""
        return self.url.partition("?")[0]


@dataclass(frozen=True)
class WebhookStatus:
    """A webhook and how many of its deliveries wait or were given up. last_error: empty after a success."""

    webhook: Webhook
    pending: int = 0
    dead: int = 0
    last_error: str = ""


class State(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """When a delivery is tried again: twelve attempts over about three and a half hours.

    attempts: how many there are before it is given up. first_s, factor, max_s: what is waited in between.
    """

    attempts: int = 12
    first_s: float = 1.0
    factor: float = 3.0
    max_s: float = _MAX_BACKOFF_S

    def delay_s(self, attempts: int) -> float:
        """After so many attempts. Receivers that failed together are not tried again together."""
        longest = min(self.max_s, self.first_s * self.factor ** (attempts - 1))
        return longest * random.uniform(1 - _JITTER, 1)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of an attempt. error: empty if the receiver took it. status: 0 without an answer."""

    status: int = 0
    error: str = ""
    retry_after_s: float = 0.0
    is_final: bool = False
    """No further attempt can end otherwise."""

    @classmethod
    def of_status(cls, status: int, retry_after_s: float = 0.0) -> Outcome:
        if 200 <= status < 300:
            return cls(status=status)
        return cls(
            status=status,
            error=f"the receiver answered {status}",
            retry_after_s=retry_after_s,
            is_final=status == _GONE,
        )

    @classmethod
    def failed(cls, error: str, *, is_final: bool = False) -> Outcome:
        line = " ".join("".join(c if c.isprintable() else " " for c in error).split())
        return cls(error=line[:_ERROR_CHARACTERS], is_final=is_final)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One change on its way to one webhook."""

    project: str
    webhook_id: str
    sequence: int
    action: str
    create_time: datetime
    state: State = State.PENDING
    attempts: int = 0
    next_attempt_time: datetime | None = None
    last_attempt_time: datetime | None = None
    last_status: int = 0
    last_error: str = ""
    claim: str | None = None
    """Of the sender that is at it; None while nobody is."""

    @property
    def message_id(self) -> str:
        """The same in every attempt: what a receiver knows a repetition by.

        It is signed with full stops around it, so it has none of its own.
        """
        project = quote(self.project, safe="").replace(".", "%2E")
        return f"{project}/{self.webhook_id}/{self.sequence}"

    def is_due(self, now: datetime) -> bool:
        """The first attempt is due at once, as is the next one after a clock was set back."""
        if self.attempts == 0 or self.next_attempt_time is None:
            return True
        return not now < self.next_attempt_time <= now + _LONGEST_WAIT

    def claimed(self, claim: str, now: datetime) -> Delivery:
        """Counted now: an attempt that ends its sender is one as well."""
        return replace(self, attempts=self.attempts + 1, last_attempt_time=now, claim=claim)

    def ended(self, outcome: Outcome, now: datetime, backoff: Backoff) -> Delivery:
        """After the attempt that was claimed: delivered, dead, or to be tried again."""
        ended = replace(
            self,
            last_status=outcome.status,
            last_error=outcome.error,
            next_attempt_time=None,
            claim=None,
        )
        if not outcome.error:
            return replace(ended, state=State.DELIVERED)
        if outcome.is_final or self.attempts >= backoff.attempts:
            return replace(ended, state=State.DEAD)
        delay_s = max(backoff.delay_s(self.attempts), min(outcome.retry_after_s, backoff.max_s))
        return replace(ended, next_attempt_time=now + timedelta(seconds=delay_s))


def check_webhook_id(field: str, webhook_id: str) -> None:
    """Raises InvalidArgument naming `field`."""
    try:
        check_model_id(field, webhook_id)
    except InvalidArgument as error:
        raise InvalidArgument(
            field, "is not a webhook id: lower-case letters, digits and -, at most 63"
        ) from error


def check_url(field: str, url: str) -> None:
    """Raises InvalidArgument naming `field` unless it is https, or http to this machine itself."""
    try:
        # The parser that the sender uses: another one might see another host.
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise InvalidArgument(field, "is not a URL") from error
    host = parsed.raw_host.decode("ascii")
    authority = url.partition("://")[2].partition("?")[0].partition("#")[0]
    if parsed.scheme not in {"https", "http"} or not host:
        raise InvalidArgument(field, "must begin with https://")
    # Also where they are empty: what is left of an @ looks like the host to people, and to some parsers.
    if "@" in authority.partition("/")[0] or "\\" in url or parsed.userinfo:
        raise InvalidArgument(field, "contains credentials, or an @ or \\ that looks like them")
    if "#" in url:
        raise InvalidArgument(field, "has a fragment (#…), which is never sent")
    if any(c.isspace() or not c.isprintable() for c in url):
        raise InvalidArgument(field, "contains spaces or control characters")
    if not (":" in host and "%" not in host) and _HOST_NAME.fullmatch(host) is None:
        raise InvalidArgument(field, "has no valid host")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise InvalidArgument(field, "has no valid port")
    if parsed.scheme == "http" and host != "localhost" and not is_loopback(host):
        raise InvalidArgument(field, "is http, which is allowed for this machine only; use https")


def check_public(field: str, url: str) -> None:
    """Raises InvalidArgument naming `field` if the host is plainly this machine, or in a private network.

    What a name leads to is seen when something is sent.
    """
    host = httpx2.URL(url).raw_host.decode("ascii")
    if host == "localhost" or (is_address(host) and not is_public(host)):
        raise InvalidArgument(
            field, "leads to this machine or a private network, which NEUROWEAVER_WEBHOOK_PRIVATE=true allows"
        )


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """HMAC-SHA256 in the scheme's first version. timestamp: of the attempt, in seconds since 1970."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def headers(secret: str, message_id: str, timestamp: int, body: bytes) -> Mapping[str, str]:
    """What goes with a body."""
    return {
        "content-type": "application/json",
        "user-agent": "NeuroWeaver",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(secret, message_id, timestamp, body),
    }


def body_of(event: Message) -> bytes:
    """A ModelEvent as it is sent: {"type": its action, "timestamp": when it happened, "data": the event}."""
    data = json_format.MessageToDict(event, preserving_proto_field_name=True)
    content = {"type": data["action"], "timestamp": data["time"], "data": data}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _is_meant(pattern: str, action: str) -> bool:
    return action.startswith(pattern[:-1]) if pattern.endswith(".*") else action == pattern
