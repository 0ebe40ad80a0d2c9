"""A judge behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import openai

from neuroweaver.trainer.worker.judging import prompt
from neuroweaver.trainer.worker.judging.cache import JudgeCache, key_of
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
# A share means nothing for a handful of items.
MAX_MISSING_OF_FEW = 2
POLL_S = 0.5
# Refusals that no further request can change.
HOPELESS: Final[Mapping[type[Exception], str]] = {
    openai.AuthenticationError: "refuses the key (401): check OPENAI_API_KEY",
    openai.PermissionDeniedError: "denies this key the use of {model!r} (403): check OPENAI_API_KEY",
    openai.NotFoundError: "has no model {model!r} (404): check feedback_model",
}
# Failures to reach the endpoint before its first answer, after which the others are not tried.
MAX_UNREACHED = 3


class OpenAIJudge:
    """Asks a chat model for scores and comparisons; every good answer is cached.

    429, 5xx and time-outs are retried with back-off by the client. An answer that cannot be read gets one
    more try, and is missing then. More than `max_missing` of a batch missing raises JudgeUnavailable. Not for
    use in a thread that runs an event loop.
    """

    def __init__(self, settings: JudgeSettings, *, cache: Path | None = None) -> None:
        self._settings = settings
        self._cache = JudgeCache(cache)
        self.name = settings.model
        self.usage = Usage()
        self._format = 0
        self._options: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_ANSWER_TOKENS}
        self._has_answered = False
        self._unreached = 0

    def score(self, items: Sequence[JudgeItem], rubric: Rubric, monitor: Monitor) -> list[Judgement | None]:
        schema = prompt.score_schema(rubric)

        async def judged(client: openai.AsyncOpenAI, item: JudgeItem) -> Judgement | None:
            messages = prompt.score_messages(item, rubric)
            return await self._ask(client, messages, schema, lambda text: prompt.read_judgement(text, rubric))

        return asyncio.run(self._batch(items, judged, monitor))

    def compare(self, items: Sequence[Comparison], rubric: Rubric, monitor: Monitor) -> list[Verdict | None]:
        """Each pair is judged in both orders; what depends on the order is a tie."""
        schema = prompt.compare_schema()

        async def better(client: openai.AsyncOpenAI, item: Comparison, *, swapped: bool) -> str | None:
            messages = prompt.compare_messages(item, rubric, swapped=swapped)
            return await self._ask(client, messages, schema, prompt.read_better)

        async def judged(client: openai.AsyncOpenAI, item: Comparison) -> Verdict | None:
            if item.a == item.b:
                return Verdict.TIE
            return _verdict(
                await better(client, item, swapped=False), await better(client, item, swapped=True)
            )

        return asyncio.run(self._batch(items, judged, monitor))

    async def _batch(
        self,
        items: Sequence[Any],
        judged: Callable[[openai.AsyncOpenAI, Any], Coroutine[Any, Any, Answer | None]],
        monitor: Monitor,
    ) -> list[Answer | None]:
        """All answers in order, at most `concurrency` at a time; leaves at once when stopped or hopeless."""
        allowed = max(self._settings.max_missing * len(items), MAX_MISSING_OF_FEW)
        turns = asyncio.Semaphore(self._settings.concurrency)
        async with self._client() as client:

            async def one(item: Any) -> Answer | None:
                async with turns:
                    return await judged(client, item)

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
                            f"more than {self._settings.max_missing:.0%} of {len(items)}"
                        )
                return [task.result() for task in tasks]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=self._settings.api_key or "none",
            base_url=self._settings.base_url,
            timeout=self._settings.timeout_s,
            max_retries=self._settings.max_retries,
        )

    async def _ask(
        self,
        client: openai.AsyncOpenAI,
        messages: Messages,
        schema: dict[str, Any],
        read: Callable[[str], Answer],
    ) -> Answer | None:
        """What `read` makes of the model's answer, cached or asked for at most twice; None if missing."""
        key = key_of(model=self._settings.model, host=self._settings.host, messages=messages, schema=schema)
        cached = self._cache.get(key)
        if isinstance(cached, str):
            self.usage.cached += 1
            return read(cached)
        conversation = list(messages)
        for _ in range(2):
            text = await self._said(client, conversation, schema)
            if text is None:
                return None
            try:
                answer = read(text)
            except Unreadable as fault:
                repair = prompt.REPAIR.format(fault=fault)
                conversation = [
                    *messages,
                    {"role": "assistant", "content": text[:2000] or "(nothing)"},
                    {"role": "user", "content": repair},
                ]
            else:
                self._cache.put(key, text)
                return answer
        return None

    async def _said(
        self, client: openai.AsyncOpenAI, messages: Messages, schema: dict[str, Any]
    ) -> str | None:
        """The text that the model says, empty if it refuses; None if the endpoint gave nothing."""
        try:
            completion = await self._negotiated(client, messages, schema)
        except (openai.APIConnectionError, openai.APIStatusError) as error:
            # The cause is cut off throughout: an endpoint's message may repeat the key it was sent.
            self._refuse_hopeless(error)
            return None
        except ValueError:
            # A page of some other server, say, where the address is wrong.
            self._unreached_by("no JSON")
            return None
        self._has_answered = True
        self._count(getattr(completion, "usage", None))
        return _text_of(completion)

    async def _negotiated(
        self, client: openai.AsyncOpenAI, messages: Messages, schema: dict[str, Any]
    ) -> Any:
        """The completion in the strictest form, and with the options, that the endpoint accepts."""
        form, options = self._format, dict(self._options)
        while True:
            try:
                completion = await client.chat.completions.create(
                    model=self._settings.model,
                    messages=messages,  # type: ignore[arg-type]
                    **options,
                    **_response_format(FORMATS[form], schema),
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if (fewer := _without_refused(options, error)) is not None:
                    options = fewer
                elif form + 1 < len(FORMATS):
                    form += 1
                else:
                    raise
            else:
                # Kept only because it worked: a request refused for its own sake spoils nothing for others.
                self._format, self._options = form, options
                return completion

    def _refuse_hopeless(self, error: openai.APIConnectionError | openai.APIStatusError) -> None:
        """Raise JudgeUnavailable if no further request can succeed."""
        fault = HOPELESS.get(type(error), "")
        if error.code == "insufficient_quota":
            fault = "reports that the account's quota is used up"
        if fault:
            raise self._unavailable(fault.format(model=self.name)) from None
        self._unreached_by(str(getattr(error, "status_code", "") or type(error).__name__))

    def _unreached_by(self, cause: str) -> None:
        """Count a request that got no completion; too many before the first one raise JudgeUnavailable."""
        logger.warning("no judgement by %s: %s", self.name, cause)
        self._unreached += not self._has_answered
        if self._unreached >= MAX_UNREACHED:
            raise self._unavailable(f"does not answer ({cause}): check OPENAI_BASE_URL") from None

    def _unavailable(self, fault: str) -> JudgeUnavailable:
        return JudgeUnavailable(f"the judge's endpoint {self._settings.host} {fault}")

    def _count(self, usage: Any) -> None:
        self.usage.calls += 1
        read, written = (_whole(getattr(usage, name, 0)) for name in ("prompt_tokens", "completion_tokens"))
        self.usage.prompt_tokens += read
        self.usage.completion_tokens += written
        spent = read * self._settings.input_price + written * self._settings.output_price
        self.usage.cost_usd += spent / 1e6


def _text_of(completion: Any) -> str:
    """What the model says; empty if it refuses. The client does not check that a completion has its shape."""
    choices = getattr(completion, "choices", None)
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    text = getattr(message, "content", None)
    return text if isinstance(text, str) else ""


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _verdict(straight: str | None, swapped: str | None) -> Verdict | None:
    if straight is None or swapped is None:
        return None
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
