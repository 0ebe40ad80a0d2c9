"""OpenAI's requests as this server understands them: checked, or refused by the name of the parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

from neuroweaver.mesh.wire.json_values import Broken, Check, boolean, number, text, whole

Message = dict[str, str]

_ROLES: Final = ("system", "developer", "user", "assistant")
_MAX_STOPS: Final = 4
_COMPLETION_TOKENS: Final = 16  # OpenAI's default for completions
_MAX_NAME: Final = 100
_SEEDS: Final = 1 << 63


@dataclass(eq=False)
class ApiError(Exception):
    """An error as OpenAI words it. parameter: the one at fault, if one is."""

    message: str
    _: KW_ONLY
    status: int = 400
    kind: str = "invalid_request_error"
    parameter: str | None = None
    code: str | None = None
    retry_after_s: int | None = None

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
class Asked:
    """A request for an answer. prompt: messages of a chat, a text, or token ids.

    max_tokens: None is as many as the context has room for. temperature: up to 0.001 it is greedy.
    seed: of the request's own random numbers. Alone, a greedy or seeded request always gets the same answer.
    Beside others its logits are rounded differently; with fp32 weights that decides next to nothing, with
    bf16 or fp16 it changes many answers.
    """

    model: str
    prompt: list[Message] | str | list[int]
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stops: tuple[str, ...]
    ignore_eos: bool
    streams: bool
    includes_usage: bool


def chat(body: Any) -> Asked:
    """Raises ApiError."""
    given = checked(body, _CHAT)
    if "max_completion_tokens" in given and "max_tokens" in given:
        raise _refusal("max_tokens", Broken("set max_tokens or max_completion_tokens, not both"))
    max_tokens = given.get("max_completion_tokens", given.get("max_tokens"))
    return _asked(given, required(given, "messages"), max_tokens)


def completion(body: Any) -> Asked:
    """Raises ApiError."""
    given = checked(body, _COMPLETION)
    return _asked(given, required(given, "prompt"), given.get("max_tokens", _COMPLETION_TOKENS))


def _asked(given: Mapping[str, Any], prompt: Any, max_tokens: int | None) -> Asked:
    streams, options = given.get("stream", False), given.get("stream_options", {})
    if options and not streams:
        raise _refusal("stream_options", Broken("is only for requests with stream: true"))
    return Asked(
        model=required(given, "model"),
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=float(given.get("temperature", 1.0)),
        top_p=float(given.get("top_p", 1.0)),
        seed=given.get("seed"),
        stops=given.get("stop", ()),
        ignore_eos=given.get("ignore_eos", False),
        streams=streams,
        includes_usage=options.get("include_usage", False),
    )


class _Unsupported(Broken):
    def __init__(self, rule: str = "this server does not support it", path: str = "") -> None:
        super().__init__(rule, path)


def checked(body: Any, parameters: Mapping[str, Check]) -> dict[str, Any]:
    """The parameters that are given; null is as good as absent. Raises ApiError."""
    if not isinstance(body, dict):
        raise ApiError("the body must be a JSON object")
    checked = {}
    for name, value in body.items():
        if name not in parameters:
            raise ApiError(
                f"Unrecognized request argument supplied: {name[:_MAX_NAME]}",
                parameter=name[:_MAX_NAME],
                code="unknown_parameter",
            )
        if value is not None:
            try:
                checked[name] = parameters[name](value)
            except Broken as error:
                raise _refusal(name, error) from error
    return checked


def required(given: Mapping[str, Any], name: str) -> Any:
    """Raises ApiError."""
    if name not in given:
        raise ApiError(
            f"Missing required parameter: '{name}'.", parameter=name, code="missing_required_parameter"
        )
    return given[name]


def _refusal(name: str, error: Broken) -> ApiError:
    kind = "unsupported" if isinstance(error, _Unsupported) else "invalid"
    parameter = f"{name}{error.path}"
    return ApiError(
        f"{kind.title()} value for '{parameter}': {error}.", parameter=parameter, code=f"{kind}_value"
    )


def _any(value: Any) -> Any:
    """Of what changes no answer of this server."""
    return value


def _only(*neutral: Any) -> Check:
    """Of what is not supported, the values that ask for nothing."""

    def check(value: Any) -> Any:
        # In Python, True is 1 and False is 0; in JSON, and to those who ask for 0 logprobs, they are not.
        if not any(
            value == other and isinstance(value, bool) is isinstance(other, bool) for other in neutral
        ):
            raise _Unsupported
        return value

    return check


def filled(value: Any) -> str:
    """A text that is not empty."""
    if not text(value):
        raise Broken("is empty")
    return str(value)


def _stream_options(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Broken("must be an object")
    if not isinstance(value.get("include_usage", False), bool):
        raise Broken("must be true or false", ".include_usage")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise Broken("must be a text or a list of texts, none empty")
    if len(stops) > _MAX_STOPS:
        raise Broken(f"must be at most {_MAX_STOPS} texts")
    return tuple(stops)


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise Broken("must be a list with at least one message")
    return [_message(message, f"[{at}]") for at, message in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise Broken("must be an object", where)
    if (role := value.get("role")) not in _ROLES:
        raise Broken(f"must be one of {', '.join(_ROLES)}", f"{where}.role")
    for key in ("tool_calls", "function_call", "audio"):
        if value.get(key):
            raise _Unsupported(path=f"{where}.{key}")
    # Templates of open models know no developers.
    role = "system" if role == "developer" else role
    return {"role": role, "content": _content(value.get("content"), f"{where}.content")}


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise Broken("must be a text or a list of text parts", where)
    for at, part in enumerate(value):
        if not isinstance(part, dict) or not isinstance(part.get("text", ""), str):
            raise Broken("must be a text part", f"{where}[{at}]")
        if part.get("type") != "text":
            raise _Unsupported("only parts of type text can be read", f"{where}[{at}].type")
    return "".join(part.get("text", "") for part in value)


def _prompt(value: Any) -> str | list[int]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, list) and any(isinstance(item, str | list) for item in value):
        raise _Unsupported("one request has one prompt here")
    is_tokens = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
    if not value or not (isinstance(value, str) or is_tokens):
        raise Broken("must be a text or a list of token ids, not empty")
    return value  # type: ignore[no-any-return]


_IGNORED: Final = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")
_COMMON: Final[Mapping[str, Check]] = {
    "model": filled,
    "stream": boolean,
    "stream_options": _stream_options,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "seed": whole(-_SEEDS, _SEEDS - 1),
    "stop": _stops,
    "max_tokens": whole(1, 1 << 31),
    "ignore_eos": boolean,
    "n": _only(1),
    "presence_penalty": _only(0),
    "frequency_penalty": _only(0),
    "logit_bias": _only({}),
    "logprobs": _only(False),
    **dict.fromkeys(_IGNORED, _any),
}
_CHAT: Final[Mapping[str, Check]] = {
    **_COMMON,
    "messages": _messages,
    "max_completion_tokens": whole(1, 1 << 31),
    "response_format": _only({"type": "text"}),
    "tools": _only([]),
    "tool_choice": _only("none", "auto"),
    "parallel_tool_calls": _only(True, False),
    "top_logprobs": _only(0),
    "modalities": _only(["text"]),
    "audio": _only(),
    "prediction": _only(),
    "reasoning_effort": _only("none"),
    "functions": _only([]),
    "function_call": _only("none", "auto"),
    "verbosity": _only("medium"),
    "web_search_options": _only(),
}
_COMPLETION: Final[Mapping[str, Check]] = {
    **_COMMON,
    "prompt": _prompt,
    "best_of": _only(1),
    "echo": _only(False),
    "suffix": _only(""),
}
