"""A judge behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import openai

from neuroweaver.mesh.wire import bounded_http
from neuroweaver.trainer.worker.judging import faults, prompt
from neuroweaver.trainer.worker.judging.cache import JudgeCache, key_of
from neuroweaver.trainer.worker.judging.faults import Asked, Fault, NoJudgement
from neuroweaver.trainer.worker.judging.judge import (
    Comparison,
    JudgeItem,
    Judgement,
    JudgeUnavailable,
    Rubric,
    Usage,
    Verdict,
)
from neuroweaver.trainer.worker.judging.prompt import Unreadable
from neuroweaver.trainer.worker.judging.settings import JudgeSettings
from neuroweaver.trainer.worker.process.monitor import Monitor

Answer = TypeVar("Answer")
Messages = list[dict[str, str]]

logger = logging.getLogger(__name__)

# From the strictest form of answer to none; endpoints that refuse one are asked with the next.
FORMATS = ("json_schema", "json_object", "text")
MAX_ANSWER_TOKENS = 2048  # with a reasoning model's thoughts
MAX_ANSWER_BYTES = 4 << 20
# A share means nothing for a handful of items.
MAX_MISSING_OF_FEW = 2
POLL_S = 0.5
# Failures to reach the endpoint before its first answer, after which the others are not tried.
MAX_UNREACHED = 3
# Causes of missing judgements that a failure names, the commonest first.
CAUSES_NAMED = 3
CONNECT_S = 10.0
OPERATION = "chat/completions"


@dataclass(frozen=True)
class Said:
    """What the model says; empty_cause: why it may be empty or cut off."""

    text: str
    empty_cause: str = ""


class OpenAIJudge:
    """Asks a chat model for scores and comparisons; every good answer is cached.

    429, 5xx and failed connections are retried with back-off by the client. An answer that cannot be read
    gets one more try, and is missing then; one that takes longer than `timeout_s` is missing at once. More
    than `max_missing` of a batch missing raises JudgeUnavailable, which names the causes. Not for use in a
    thread that runs an event loop.
    """

    def __init__(self, settings: JudgeSettings, *, cache: Path | None = None) -> None:
        self._settings = settings
        self._cache = JudgeCache(cache)
        self.name = settings.model
        self.usage = Usage()
        self._format = 0
        self._options: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_ANSWER_TOKENS}
        self._base = 0
        self._has_answered = False
        self._unreached = 0

    def score(self, items: Sequence[JudgeItem], rubric: Rubric, monitor: Monitor) -> list[Judgement | None]:
        schema = prompt.score_schema(rubric)

        async def judged(client: openai.AsyncOpenAI, item: JudgeItem) -> Judgement:
            messages = prompt.score_messages(item, rubric)
            return await self._ask(
                client, messages, schema, lambda text: prompt.read_judgement(text, rubric, item)
            )

        return asyncio.run(self._batch(items, judged, monitor))

    def compare(self, items: Sequence[Comparison], rubric: Rubric, monitor: Monitor) -> list[Verdict | None]:
        """Each pair is judged in both orders; what depends on the order is a tie."""
        schema = prompt.compare_schema()

        async def better(client: openai.AsyncOpenAI, item: Comparison, *, swapped: bool) -> str:
            messages = prompt.compare_messages(item, rubric, swapped=swapped)
            return await self._ask(client, messages, schema, lambda text: prompt.read_better(text, item))

        async def judged(client: openai.AsyncOpenAI, item: Comparison) -> Verdict:
            if item.a == item.b:
                return Verdict.TIE
            return _verdict(
                await better(client, item, swapped=False), await better(client, item, swapped=True)
            )

        return asyncio.run(self._batch(items, judged, monitor))

    async def _batch(
        self,
        items: Sequence[Any],
        judged: Callable[[openai.AsyncOpenAI, Any], Coroutine[Any, Any, Answer]],
        monitor: Monitor,
    ) -> list[Answer | None]:
        """All answers in order, at most `concurrency` at a time; leaves at once when stopped or hopeless."""
        allowed = max(self._settings.max_missing * len(items), MAX_MISSING_OF_FEW)
        turns = asyncio.Semaphore(self._settings.concurrency)
        causes: Counter[str] = Counter()
        async with self._client() as client:

            async def one(item: Any) -> Answer | None:
                async with turns:
                    try:
                        return await judged(client, item)
                    except NoJudgement as lost:
                        logger.warning("no judgement by %s: %s", self.name, lost)
                        causes[str(lost)] += 1
                        return None

            tasks = [asyncio.ensure_future(one(item)) for item in items]
            try:
                done = missing = 0
                pending = set(tasks)
                while pending:
                    monitor.check()
                    finished, pending = await asyncio.wait(
                        pending, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    done += len(finished)
                    lost = sum(task.result() is None for task in finished)
                    missing += lost
                    self.usage.missing += lost
                    if finished:
                        monitor.report(step=done, total_steps=len(items), tokens=self.usage.tokens)
                    if missing > allowed:
                        raise JudgeUnavailable(
                            f"{self.name} gave no usable judgement for {missing} of {done} answers, "
                            f"more than {self._settings.max_missing:.0%} of {len(items)}: {_named(causes)}"
                        )
                return [task.result() for task in tasks]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _client(self) -> openai.AsyncOpenAI:
        settings = self._settings
        return openai.AsyncOpenAI(
            api_key=settings.api_key or "none",
            base_url=settings.bases[0],
            default_query=settings.query,
            # Azure reads an API key here, and a token of its directory where others read a key.
            default_headers={"api-key": settings.api_key} if "api-version" in settings.query else None,
            max_retries=settings.max_retries,
            timeout=openai.Timeout(settings.timeout_s, connect=min(CONNECT_S, settings.timeout_s / 2)),
            http_client=_BoundedClient(settings.timeout_s),
        )

    async def _ask(
        self,
        client: openai.AsyncOpenAI,
        messages: Messages,
        schema: dict[str, Any],
        read: Callable[[str], Answer],
    ) -> Answer:
        """What `read` makes of the model's answer, cached or asked for at most twice. Raises NoJudgement."""
        key = key_of(model=self._settings.model, host=self._settings.host, messages=messages, schema=schema)
        cached = self._cache.get(key)
        if isinstance(cached, str):
            # An earlier version may have kept what can no longer be read.
            with suppress(Unreadable):
                answer = read(cached)
                self.usage.cached += 1
                return answer
        conversation, cause = list(messages), ""
        for _ in range(2):
            said = await self._said(client, conversation, schema)
            try:
                answer = read(said.text)
            except Unreadable as fault:
                cause = said.empty_cause or str(fault)
                repair = prompt.REPAIR.format(fault=fault)
                conversation = [
                    *messages,
                    {"role": "assistant", "content": said.text[:2000] or "(nothing)"},
                    {"role": "user", "content": repair},
                ]
            else:
                self._cache.put(key, said.text)
                return answer
        raise NoJudgement(cause)

    async def _said(self, client: openai.AsyncOpenAI, messages: Messages, schema: dict[str, Any]) -> Said:
        """What the model says. Raises NoJudgement if the endpoint gave nothing."""
        try:
            completion = await self._negotiated(client, messages, schema)
        except openai.APIError as error:
            self._lost(faults.fault_of(error, self._asked()))
        except ValueError as error:
            self._lost(faults.fault_of_page(error, self._asked()))
        if fault := faults.fault_within(completion, self._asked()):
            self._lost(fault)
        self._has_answered = True
        self._count(getattr(completion, "usage", None))
        return _said_in(completion, self._settings.secrets)

    async def _negotiated(
        self, client: openai.AsyncOpenAI, messages: Messages, schema: dict[str, Any]
    ) -> Any:
        """The completion in the strictest form, and with the options, that the endpoint accepts."""
        form, options, base = self._format, dict(self._options), self._base
        bases = self._settings.bases
        while True:
            try:
                completion = await client.with_options(base_url=bases[base]).chat.completions.create(
                    model=self._settings.model,
                    messages=messages,  # type: ignore[arg-type]
                    **options,
                    **_response_format(FORMATS[form], schema),
                )
            except openai.NotFoundError as error:
                is_settled = base + 1 == len(bases) or (self._has_answered and base == self._base)
                if is_settled or not faults.is_about_the_path(error, self._settings.model):
                    raise
                base += 1
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if (fewer := _without_refused(options, error)) is not None:
                    options = fewer
                elif form + 1 < len(FORMATS):
                    form += 1
                else:
                    raise
            else:
                # Kept only because it worked: a request refused for its own sake spoils nothing for others.
                self._format, self._options, self._base = form, options, base
                return completion

    def _asked(self) -> Asked:
        settings = self._settings
        path = f"{urlsplit(settings.bases[self._base]).path}/{OPERATION}"
        return Asked(settings.model, path, settings.timeout_s, settings.secrets)

    def _lost(self, fault: Fault) -> NoReturn:
        """Raise NoJudgement, or JudgeUnavailable if no request can succeed or none did among the first few.

        The error itself is cut off throughout: it may hold the key.
        """
        if fault.is_final:
            raise self._unavailable(fault.cause) from None
        self._unreached += not self._has_answered
        if self._unreached >= MAX_UNREACHED:
            raise self._unavailable(f"gives no judgement: {fault.cause}") from None
        raise NoJudgement(fault.cause) from None

    def _unavailable(self, fault: str) -> JudgeUnavailable:
        return JudgeUnavailable(f"the judge's endpoint {self._settings.host} {fault}")

    def _count(self, usage: Any) -> None:
        self.usage.calls += 1
        read, written = (_whole(getattr(usage, name, 0)) for name in ("prompt_tokens", "completion_tokens"))
        self.usage.prompt_tokens += read
        self.usage.completion_tokens += written
        spent = read * self._settings.input_price + written * self._settings.output_price
        self.usage.cost_usd += spent / 1e6


class _BoundedClient(bounded_http.AsyncClient):
    """Gives up a request after `limit_s`, an answer of too many bytes, and one that leads to another host."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(max_bytes=MAX_ANSWER_BYTES, limits=openai.DEFAULT_CONNECTION_LIMITS)
        self._limit_s = limit_s

    async def send(self, request: Any, **options: Any) -> Any:
        """Raises openai's own errors, after which its client does not ask again."""
        try:
            async with asyncio.timeout(self._limit_s):
                return await super().send(request, **options)
        except TimeoutError:
            raise openai.APITimeoutError(request=request) from None
        except bounded_http.Refused as error:
            raise openai.APIConnectionError(request=request) from error


def _said_in(completion: Any, secrets: frozenset[str]) -> Said:
    """The client does not check that a completion has its shape."""
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    text = _text_of(getattr(message, "content", None))
    if getattr(choice, "finish_reason", None) == "length":
        return Said(
            text, f"the answer was cut off at {MAX_ANSWER_TOKENS} tokens, or at the endpoint's own limit"
        )
    if refusal := getattr(message, "refusal", None):
        return Said(text, f"the model refuses: {faults.without_secrets(str(refusal), secrets)}")
    if text:
        return Said(text)
    if any(getattr(message, name, None) for name in ("reasoning_content", "reasoning")):
        return Said(text, "the answer holds thoughts alone, in reasoning_content")
    return Said(text, "the answer is empty")


def _text_of(content: Any) -> str:
    """The text of a message, whole or in parts; thoughts are parts of another type."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [
        part["text"]
        for part in parts
        if isinstance(part, dict) and part.get("type") in {"text", "output_text"} and "text" in part
    ]
    return "".join(text for text in texts if isinstance(text, str))


def _named(causes: Counter[str]) -> str:
    named = [f"{cause} ({count} times)" for cause, count in causes.most_common(CAUSES_NAMED)]
    others = causes.total() - sum(count for _, count in causes.most_common(CAUSES_NAMED))
    return "; ".join([*named, *([f"others ({others} times)"] if others else [])])


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _verdict(straight: str, swapped: str) -> Verdict:
    agreed = {("first", "second"): Verdict.A, ("second", "first"): Verdict.B}
    return agreed.get((straight, swapped), Verdict.TIE)


def _response_format(form: str, schema: dict[str, Any]) -> dict[str, Any]:
    if form == "json_schema":
        described = {"name": "judgement", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": described}}
    return {"response_format": {"type": "json_object"}} if form == "json_object" else {}


def _without_refused(options: dict[str, Any], error: openai.APIStatusError) -> dict[str, Any] | None:
    """The options without the one that the endpoint names in its refusal; None if it names none of them."""
    refusal = f"{error.param or ''} {error.message}"
    # Reasoning models know the limit by another name, and no temperature.
    for name in ("max_tokens", "temperature", "max_completion_tokens"):
        if name in options and name in refusal:
            fewer = {key: value for key, value in options.items() if key != name}
            return fewer | ({"max_completion_tokens": options[name]} if name == "max_tokens" else {})
    return None
