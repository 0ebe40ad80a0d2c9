"""What a worker's environment says about the judge behind an endpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from neuroweaver.mesh.wire.environment import number, text, url, variable, whole

OPENAI_URL: Final = "https://api.openai.com/v1"

SHORTEST_SECRET: Final = 8
_ENDS_IN_OPERATION: Final = re.compile(r"/(?:chat/)?completions/*$")
_HAS_VERSION: Final = re.compile(r"/v\d")

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
        "NEUROWEAVER_JUDGE_TIMEOUT_S",
        number(1, "a number of seconds"),
        60.0,
        help="The longest time for one answer, from the request to its last byte.",
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
    def bases(self) -> tuple[str, ...]:
        """The addresses to ask below, the likeliest first, without the query.

        An address without a version is taken as it stands, and with /v1 where it has nothing.
        """
        base = self.base_url.partition("#")[0].partition("?")[0].rstrip("/")
        base = _ENDS_IN_OPERATION.sub("", base)
        return (base,) if _HAS_VERSION.search(urlsplit(base).path) else (base, f"{base}/v1")

    @property
    def query(self) -> dict[str, str]:
        """What is sent behind each address, as Azure's `api-version`."""
        return dict(parse_qsl(urlsplit(self.base_url).query, keep_blank_values=True))

    @property
    def secrets(self) -> frozenset[str]:
        """What an endpoint may repeat and nobody is to read."""
        # Short values, as of `?stream=1`, are no keys, and stand in other words.
        values = (value for value in self.query.values() if len(value) >= SHORTEST_SECRET)
        texts = {self.api_key, urlsplit(self.base_url).password or "", *values}
        return frozenset(text for text in texts if text)

    @property
    def host(self) -> str:
        """The address without credentials, path and query."""
        parts = urlsplit(self.base_url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
