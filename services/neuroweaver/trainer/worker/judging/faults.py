"""Why an endpoint gave no judgement: the cause in its own words, without secrets that may stand in them."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

import openai

from neuroweaver.mesh.server import redaction
from neuroweaver.mesh.wire import bounded_http

MAX_WORDS: Final = 160
# The client waits no longer than this before it asks again.
LONGEST_WAIT_S: Final = 120
# Refusals that no further request can change.
_FINAL: Final[Mapping[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "refuses the key (401): check OPENAI_API_KEY",
    HTTPStatus.PAYMENT_REQUIRED: "reports that the account's quota is used up ({said})",
    HTTPStatus.FORBIDDEN: "denies this key the use of {asked.model!r} ({said}): check OPENAI_API_KEY",
    HTTPStatus.NOT_FOUND: "has no model {asked.model!r} ({said}): check feedback_model",
}
# How a stream of server-sent events begins.
_STREAM: Final = ("data:", "event:", "id:", "retry:", ": ")
_MARKUP: Final = re.compile(
    r"<(script|style|head)\b.*?</\1\s*>|<!--.*?-->|<[^<>]*>", re.DOTALL | re.IGNORECASE
)


class NoJudgement(Exception):
    """One answer got no judgement; the text is the cause."""


@dataclass(frozen=True)
class Fault:
    """Why a request brought no completion. is_final: no further request can succeed."""

    cause: str
    is_final: bool = False


@dataclass(frozen=True)
class Asked:
    """What a request asked for, which its refusal may be about. secrets: must not show in a cause."""

    model: str
    path: str
    timeout_s: float
    secrets: frozenset[str]


def fault_of(error: openai.APIError, asked: Asked) -> Fault:
    """Why the client gave up a request."""
    if isinstance(error, openai.APITimeoutError):
        return Fault(f"no whole answer within {asked.timeout_s:g} s: raise NEUROWEAVER_JUDGE_TIMEOUT_S")
    if isinstance(error, openai.APIStatusError):
        wait_s = _seconds(error.response.headers.get("retry-after"))
        return _refusal(error.status_code, str(error.code or ""), error.body, asked, wait_s=wait_s)
    if isinstance(refused := error.__cause__, bounded_http.Refused):
        is_final = isinstance(refused, bounded_http.RedirectRefused)
        return Fault(f"{without_secrets(str(refused), asked.secrets)}: check OPENAI_BASE_URL", is_final)
    return Fault(_unreached(error, asked))


def fault_within(completion: Any, asked: Asked) -> Fault | None:
    """Why what came with status 200 is no completion; None if it is one."""
    if isinstance(completion, str | bytes):
        return Fault(_no_json(completion, asked))
    error = getattr(completion, "error", None)
    if error:
        code = error.get("code") if isinstance(error, Mapping) else None
        status = int(str(code)) if str(code).isdecimal() else 200
        return _refusal(status, str(code), error, asked)
    return None


def fault_of_page(error: ValueError, asked: Asked) -> Fault:
    """Why a body that calls itself JSON is none."""
    return Fault(_no_json(getattr(error, "doc", ""), asked))


def is_about_the_path(error: openai.NotFoundError, model: str) -> bool:
    """Whether the server knows nothing at that path, rather than no such model."""
    return not _names_model(str(error.code), _message(error.body), model)


def without_secrets(text: str, secrets: frozenset[str]) -> str:
    """One short line of the text, without markup, keys and `secrets`."""
    text = redaction.redacted_text(" ".join(_MARKUP.sub(" ", text).split()), secrets)
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}\u2026"


def _refusal(status: int, code: str, body: Any, asked: Asked, *, wait_s: float = 0.0) -> Fault:
    words = without_secrets(_message(body), asked.secrets)
    said = f"{status}: {words}" if words else str(status)
    if code == "insufficient_quota":
        status = HTTPStatus.PAYMENT_REQUIRED
    if status == HTTPStatus.NOT_FOUND and not _names_model(code, words, asked.model):
        final = "has nothing at {asked.path} ({said}): check OPENAI_BASE_URL, which mostly ends in /v1"
    elif wait_s > LONGEST_WAIT_S:
        final = "asks to wait {wait_s:.0f} s ({said}): resume the job then"
    else:
        final = _FINAL.get(status, "")
    if final:
        return Fault(final.format(asked=asked, said=said, wait_s=wait_s), is_final=True)
    return Fault(said if status != HTTPStatus.OK else words or "an error without a message")


def _names_model(code: str, words: str, model: str) -> bool:
    return code == "model_not_found" or "model" in words.lower() or model in words


def _unreached(error: openai.APIError, asked: Asked) -> str:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message or "not verified"
            return f"its certificate is not trusted ({reason}): SSL_CERT_FILE names the authorities to trust"
    system = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    words = [str(cause) for cause in causes[1:] if str(cause)]
    reason = next(iter(reversed(system)), "") or next(iter(words), "") or type(error).__name__
    return f"no connection ({without_secrets(reason, asked.secrets)}): check OPENAI_BASE_URL"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, what caused that."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _no_json(page: str | bytes, asked: Asked) -> str:
    text = page.decode("utf-8", "replace") if isinstance(page, bytes) else page
    words = without_secrets(text, asked.secrets)
    kind = "a stream of events" if text.lstrip().startswith(_STREAM) else "a page"
    what = f"{kind}, \u201c{words}\u201d" if words else "an empty body"
    return f"{what}, where JSON was asked for at {asked.path}: check OPENAI_BASE_URL"


def _message(body: Any) -> str:
    """What an error says, in the shapes that servers give it."""
    if isinstance(body, Mapping):
        for name in ("message", "error", "detail", "error_msg"):
            if body.get(name):
                return _message(body[name])
        return ""
    if isinstance(body, list):
        return "; ".join(filter(None, map(_message, body)))
    return body if isinstance(body, str) else ""


def _seconds(retry_after: str | None) -> float:
    """How long to wait from now: servers name seconds, or a date."""
    with suppress(ValueError):
        return float(retry_after or 0)
    with suppress(ValueError):
        return (parsedate_to_datetime(retry_after or "") - datetime.now(UTC)).total_seconds()
    return 0.0
