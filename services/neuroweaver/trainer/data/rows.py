"""One row of training data: which layout it has and the chat example it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong at one place of the file. `line` counts from 1; 0 speaks of the whole file."""

    line: int
    column_or_field: str
    severity: Severity
    reason: str


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: a chat (`messages`), or plain text (`text`, then `messages` is empty)."""

    messages: tuple[Message, ...]
    line: int
    text: str = ""
    specialization: str = ""


@dataclass(frozen=True, slots=True)
class SystemPrompts:
    """The system prompt of each specialisation, and the job's own specialisation for rows that name none."""

    by_specialization: Mapping[str, str] = field(default_factory=dict)
    default: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A parsed row: the layout's name, its example (None if refused) and its findings."""

    layout: str
    example: Example | None
    findings: tuple[Finding, ...] = ()


class Refused(Exception):
    """This row cannot be used."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Pair:
    """A layout whose row asks in one field and answers in another; the first name present is taken."""

    name: str
    asks: str
    answers: tuple[str, ...]
    context: str = ""


# Instruction comes before input/output: its rows may hold an `input` and an `output` too.
PAIRS = (
    Pair("question/answer", "question", ("answer",)),
    Pair("instruction/response", "instruction", ("response", "output"), context="input"),
    Pair("input/output", "input", ("output",)),
    Pair("prompt/completion", "prompt", ("completion", "response")),
)
LAYOUTS = ("messages", "conversations", *(pair.name for pair in PAIRS), "text")
ROLES = ("system", "user", "assistant")
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
}
KINDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    str: "a string",
}


def parse(fields: Mapping[str, Any], line: int, prompts: SystemPrompts) -> Row:
    """The example that `fields`, found at `line`, holds; a row that cannot be used says why."""
    layout = _layout(fields)
    try:
        specialization = _specialization(fields, prompts)
        if layout == "text":
            return Row(layout, Example((), line, _text(fields, "text"), specialization))
        messages = _messages(layout, fields)
        warnings = tuple(Finding(line, layout, Severity.WARNING, reason) for reason in _doubts(messages))
        messages = _with_system(messages, prompts.by_specialization.get(specialization, ""))
        return Row(layout, Example(messages, line, "", specialization), warnings)
    except Refused as refusal:
        return Row(layout, None, (Finding(line, refusal.name, Severity.ERROR, refusal.reason),))


def _layout(fields: Mapping[str, Any]) -> str:
    """The layout with all its fields present, or else the first that is begun; empty if none is."""
    for name in ("messages", "conversations"):
        if name in fields:
            return name
    begun = [pair for pair in PAIRS if pair.asks in fields]
    whole = [pair for pair in begun if any(name in fields for name in pair.answers)]
    if whole or begun:
        return (whole or begun)[0].name
    return "text" if "text" in fields else ""


def _messages(layout: str, fields: Mapping[str, Any]) -> tuple[Message, ...]:
    if layout == "messages":
        return _checked(
            layout, tuple(_turns(layout, fields[layout], "role", "content", {r: r for r in ROLES}))
        )
    if layout == "conversations":
        return _checked(layout, tuple(_turns(layout, fields[layout], "from", "value", SPEAKERS)))
    for pair in PAIRS:
        if pair.name == layout:
            return _pair(pair, fields)
    if {"chosen", "rejected"} <= fields.keys():
        raise Refused("chosen", "a preference pair; give one answer a row, as prompt and completion")
    present = ", ".join(list(fields)[:8]) or "nothing"
    raise Refused("", f"unknown fields: {present}; use one of {', '.join(LAYOUTS)}")


def _pair(pair: Pair, fields: Mapping[str, Any]) -> tuple[Message, ...]:
    answer = next((name for name in pair.answers if name in fields), None)
    if answer is None:
        raise Refused(pair.answers[0], f"missing; a row with {pair.asks!r} needs {' or '.join(pair.answers)}")
    question = _text(fields, pair.asks)
    context = _optional(fields, pair.context) if pair.context else ""
    if context:
        question = f"{question}\n\n{context}"
    system = _optional(fields, "system")
    turns = (Message("user", question), Message("assistant", _text(fields, answer)))
    return (Message("system", system), *turns) if system else turns


def _turns(
    layout: str, turns: Any, role_key: str, text_key: str, roles: Mapping[str, str]
) -> Iterator[Message]:
    if not isinstance(turns, list):
        raise Refused(layout, f"must be a list, not {_kind(turns)}")
    if not turns:
        raise Refused(layout, "is an empty list")
    for index, turn in enumerate(turns):
        place = f"{layout}[{index}]"
        if not isinstance(turn, dict):
            raise Refused(place, f"must be an object, not {_kind(turn)}")
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in roles:
            shown = repr(role[:40]) if isinstance(role, str) else _kind(role)
            raise Refused(f"{place}.{role_key}", f"unknown role {shown}; use one of {', '.join(roles)}")
        yield Message(roles[role], _text(turn, text_key, place=f"{place}."))


def _checked(layout: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    for index, message in enumerate(messages):
        if message.role == "system" and index:
            raise Refused(f"{layout}[{index}]", "a system message must be the first one")
    roles = {message.role for message in messages}
    if "assistant" not in roles:
        raise Refused(layout, "no assistant turn, so nothing to learn from")
    if "user" not in roles:
        raise Refused(layout, "no user turn, so nothing to answer")
    return messages


def _doubts(messages: tuple[Message, ...]) -> Iterator[str]:
    """What is allowed but probably not meant."""
    spoken = [message.role for message in messages if message.role != "system"]
    if spoken[0] == "assistant":
        yield "the assistant speaks first; some chat templates refuse that"
    if spoken[-1] == "user":
        yield "the last turn is the user's and has no answer to learn"
    if any(one == other for one, other in pairwise(spoken)):
        yield "two turns of one role in a row; some chat templates refuse that"


def _with_system(messages: tuple[Message, ...], prompt: str) -> tuple[Message, ...]:
    if not prompt or messages[0].role == "system":
        return messages
    return (Message("system", prompt), *messages)


def _specialization(fields: Mapping[str, Any], prompts: SystemPrompts) -> str:
    own = _optional(fields, "specialization")
    if own and prompts.by_specialization and own not in prompts.by_specialization:
        names = ", ".join(sorted(prompts.by_specialization))
        raise Refused("specialization", f"unknown specialization {own[:40]!r}; use one of {names}")
    return own or prompts.default


def _text(fields: Mapping[str, Any], name: str, *, place: str = "") -> str:
    if name not in fields:
        raise Refused(place + name, "missing")
    value = fields[name]
    if not isinstance(value, str):
        raise Refused(place + name, f"must be a string, not {_kind(value)}")
    if not value.strip():
        raise Refused(place + name, "is empty")
    if "\0" in value:
        raise Refused(place + name, "holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can escape half a surrogate pair; no tokenizer can encode it.
        raise Refused(place + name, "holds half of a surrogate pair, which is no character") from None
    return value


def _optional(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return _text(fields, name)


def _kind(value: Any) -> str:
    return "null" if value is None else KINDS.get(type(value), type(value).__name__)
