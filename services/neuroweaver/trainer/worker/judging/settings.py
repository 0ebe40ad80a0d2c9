"""What a worker's environment says about the judge behind an endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from neuroweaver.mesh.wire.environment import number, text, url, variable, whole

OPENAI_URL: Final = "https://api.openai.com/v1"

_price: Final = number(0, "a price in US dollars")


@dataclass(frozen=True, kw_only=True, repr=False)
class JudgeSettings:
    """An OpenAI-compatible endpoint and how it is asked.

    max_retries: of one request, by the client. max_missing: share of a batch that may be without a judgement.
    `repr` shows neither key nor credentials, so they can reach no log through it.
    """

    model: str
    api_key: str = variable(
        "OPENAI_API_KEY", text, "", is_secret=True, help="Shown to the endpoint that judges."
    )
    base_url: str = variable(
        "OPENAI_BASE_URL",
        url("http", "https"),
        OPENAI_URL,
        is_secret=True,
        help="An OpenAI-compatible endpoint that judges.",
    )
    concurrency: int = variable(
        "NEUROWEAVER_JUDGE_CONCURRENCY",
        whole(1, "a number of requests"),
        8,
        help="How many requests a judge gets at once.",
    )
    timeout_s: float = variable(
        "NEUROWEAVER_JUDGE_TIMEOUT_S", number(1, "a number of seconds"), 60.0, help="Of one request."
    )
    input_price: float = variable(
        "NEUROWEAVER_JUDGE_INPUT_PRICE",
        _price,
        0.0,
        help="US dollars for a million tokens that the judge reads; 0: unknown.",
    )
    output_price: float = variable(
        "NEUROWEAVER_JUDGE_OUTPUT_PRICE",
        _price,
        0.0,
        help="US dollars for a million tokens that the judge writes; 0: unknown.",
    )
    max_retries: int = 4
    max_missing: float = 0.2

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.model!r}, host={self.host!r})"

    @property
    def host(self) -> str:
        """The address without credentials, path and query."""
        parts = urlsplit(self.base_url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
