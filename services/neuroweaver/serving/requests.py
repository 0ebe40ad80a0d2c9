"""OpenAI's requests as this server understands them: checked, or refused by the name of the parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Message = dict[str, str]

_ROLES: Final = ("system", "developer", "user", "assistant")
_MAX_STOPS: Final = 4
_COMPLETION_TOKENS: Final = 16  # OpenAI's default for completions


class ApiError(Exception):
    """An error as OpenAI words it. parameter: the one at fault, if one is."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        parameter: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.parameter = parameter
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.parameter,
                "code": self.code,
            }
        }


@dataclass(frozen=True, slots=True)
class Sampling:
    """max_tokens: None is as many as the context has room for."""

    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stops: tuple[str, ...]
    ignore_eos: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for an answer. prompt: messages of a chat, a text, or token ids."""

    model: str
    prompt: list[Message] | str | list[int]
    sampling: Sampling
    streams: bool
    includes_usage: bool


def chat(body: Any) -> Asked:
    """Raises ApiError."""
    given = _Given(body)
    given.refuse_unknown(_COMMON | _CHAT)
    given.refuse_all_but({**_COMMON_NEUTRAL, **_CHAT_NEUTRAL})
    if given.has("max_completion_tokens") and given.has("max_tokens"):
        raise _wrong("max_tokens", "set max_tokens or max_completion_tokens, not both")
    name = "max_completion_tokens" if given.has("max_completion_tokens") else "max_tokens"
    return _asked(given, _messages(given.value("messages")), given.whole(name, low=1))


def completion(body: Any) -> Asked:
    """Raises ApiError."""
    given = _Given(body)
    given.refuse_unknown(_COMMON | _COMPLETION)
    given.refuse_all_but({**_COMMON_NEUTRAL, **_COMPLETION_NEUTRAL})
    max_tokens = given.whole("max_tokens", low=1)
    return _asked(given, _prompt(given.value("prompt")), max_tokens or _COMPLETION_TOKENS)


# What changes no answer of this server, so that any value may stand.
_IGNORED: Final = frozenset(
    {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"}
)
_COMMON: Final = _IGNORED | {
    "model", "n", "stream", "stream_options", "temperature", "top_p", "seed", "stop", "max_tokens",
    "ignore_eos", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs",
}  # fmt: skip
_CHAT: Final = frozenset({
    "messages", "max_completion_tokens", "response_format", "tools", "tool_choice", "parallel_tool_calls",
    "top_logprobs", "modalities", "audio", "prediction", "reasoning_effort", "functions", "function_call",
    "verbosity", "web_search_options",
})  # fmt: skip
_COMPLETION: Final = frozenset({"prompt", "best_of", "echo", "suffix"})

_Neutral = Mapping[str, tuple[Any, ...]]
# Of what is not supported, the values that ask for nothing.
_COMMON_NEUTRAL: Final[_Neutral] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
}
_CHAT_NEUTRAL: Final[_Neutral] = {
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_COMPLETION_NEUTRAL: Final[_Neutral] = {"best_of": (1,), "echo": (False,), "suffix": ("",)}


def _asked(given: _Given, prompt: Any, max_tokens: int | None) -> Asked:
    streams = given.boolean("stream")
    options = given.value("stream_options", {})
    if not isinstance(options, dict):
        raise _wrong("stream_options", "must be an object")
    if options and not streams:
        raise _wrong("stream_options", "is only for requests with stream: true")
    includes_usage = options.get("include_usage", False)
    if not isinstance(includes_usage, bool):
        raise _wrong("stream_options.include_usage", "must be true or false")
    return Asked(
        model=given.text("model"),
        prompt=prompt,
        sampling=Sampling(
            max_tokens=max_tokens,
            temperature=given.number("temperature", 1.0, low=0, high=2),
            top_p=given.number("top_p", 1.0, low=0, high=1),
            seed=given.whole("seed", low=-(1 << 63), high=(1 << 63) - 1),
            stops=_stops(given.value("stop", None)),
            ignore_eos=given.boolean("ignore_eos"),
        ),
        streams=streams,
        includes_usage=includes_usage,
    )


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise _wrong("messages", "must be a list with at least one message")
    return [_message(each, f"messages[{at}]") for at, each in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise _wrong(where, "must be an object")
    if (role := value.get("role")) not in _ROLES:
        raise _wrong(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    for key in ("tool_calls", "function_call", "audio"):
        if value.get(key):
            raise _unsupported(f"{where}.{key}")
    # Templates of open models know no developers.
    role = "system" if role == "developer" else role
    return {"role": role, "content": _content(value.get("content"), f"{where}.content")}


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise _wrong(where, "must be a text or a list of text parts")
    for at, part in enumerate(value):
        if not isinstance(part, dict) or not isinstance(part.get("text", ""), str):
            raise _wrong(f"{where}[{at}]", "must be a text part")
        if part.get("type") != "text":
            raise _unsupported(f"{where}[{at}].type", "only parts of type text can be read")
    return "".join(part.get("text", "") for part in value)


def _prompt(value: Any) -> str | list[int]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        if not value:
            raise _wrong("prompt", "is empty")
        return value
    if not isinstance(value, list) or not value:
        raise _wrong("prompt", "must be a text or a list of token ids")
    if any(isinstance(each, str | list) for each in value):
        raise _unsupported("prompt", "one request has one prompt here")
    if not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in value):
        raise _wrong("prompt", "must be a text or a list of token ids")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(each, str) and each for each in stops):
        raise _wrong("stop", "must be a text or a list of texts, none empty")
    if len(stops) > _MAX_STOPS:
        raise _wrong("stop", f"must be at most {_MAX_STOPS} texts")
    return tuple(stops)


class _Given:
    """The fields of a request's body; null is as good as absent."""

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise ApiError("the body must be a JSON object")
        self._body = {key: value for key, value in body.items() if value is not None}

    def has(self, name: str) -> bool:
        return name in self._body

    def refuse_unknown(self, known: frozenset[str]) -> None:
        for name in self._body:
            if name not in known:
                raise ApiError(
                    f"Unrecognized request argument supplied: {name[:100]}",
                    parameter=name[:100],
                    code="unknown_parameter",
                )

    def refuse_all_but(self, neutral: _Neutral) -> None:
        for name, values in neutral.items():
            if self.has(name) and self._body[name] not in values:
                raise _unsupported(name)

    def value(self, name: str, *default: Any) -> Any:
        if name not in self._body and not default:
            raise ApiError(
                f"Missing required parameter: '{name}'.", parameter=name, code="missing_required_parameter"
            )
        return self._body.get(name, *default)

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str) or not value:
            raise _wrong(name, "must be a text")
        return value

    def boolean(self, name: str) -> bool:
        value: bool = self._checked(
            name, False, lambda value: isinstance(value, bool), "must be true or false"
        )
        return value

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        def fits(value: Any) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

        return float(self._checked(name, default, fits, f"must be a number from {low:g} to {high:g}"))

    def whole(self, name: str, *, low: int, high: int = 1 << 31) -> int | None:
        def fits(value: Any) -> bool:
            return value is None or (
                isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
            )

        value: int | None = self._checked(name, None, fits, f"must be a whole number from {low} to {high}")
        return value

    def _checked(self, name: str, default: Any, fits: Callable[[Any], bool], rule: str) -> Any:
        value = self.value(name, default)
        if not fits(value):
            raise _wrong(name, rule)
        return value


def _wrong(parameter: str, rule: str) -> ApiError:
    return ApiError(f"Invalid value for '{parameter}': {rule}.", parameter=parameter, code="invalid_value")


def _unsupported(parameter: str, why: str = "this server does not support it") -> ApiError:
    return ApiError(
        f"Unsupported value for '{parameter}': {why}.", parameter=parameter, code="unsupported_value"
    )
