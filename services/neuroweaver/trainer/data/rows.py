"""One row of training data: which layout it has and the chat example it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

from neuroweaver.trainer.data.marks import (
    PREFERENCE,
    LeftOut,
    Refused,
    Remark,
    chat_markup,
    check_row,
    is_empty,
    is_preference,
    is_trained,
    kind,
    row_remarks,
    turn_remarks,
)


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
    """A turn of a chat. is_trained: an assistant's turn is learnt, and is not only context of later turns."""

    role: str
    content: str
    is_trained: bool = True


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
    """A parsed row: the layout's name, its example (None if refused or left out) and its findings.

    remarks: what is not used of a row that is; many rows share them.
    """

    layout: str
    example: Example | None
    findings: tuple[Finding, ...] = ()
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """A layout whose row asks in one field and answers in another; the first name with a value is taken."""

    name: str
    asks: str
    answers: tuple[str, ...]


# Instruction comes before input/output: its rows may hold an `input` and an `output` too.
PAIRS = (
    Pair("question/answer", "question", ("answer",)),
    Pair("instruction/response", "instruction", ("response", "output")),
    Pair("input/output", "input", ("output",)),
    Pair("prompt/completion", "prompt", ("completion", "response")),
)
ANSWERS = frozenset(name for pair in PAIRS for name in pair.answers)
# What a question is about; it follows the question.
PASSAGES = ("input", "context", "passage")
SYSTEM = ("system", "system_prompt", "system_message")
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
# Where a chat's turns have their role and their text, and what the roles are called.
CHATS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "messages": ("role", "content", {role: role for role in ROLES}),
    "conversations": ("from", "value", SPEAKERS),
}


def parse(fields: Mapping[str, Any], line: int, prompts: SystemPrompts) -> Row:
    """The example that `fields`, found at `line`, holds; a row that cannot be used says why."""
    layout = _layout(fields)
    try:
        check_row(fields)
        specialization = _specialization(fields, prompts)
        if layout == "text":
            return Row(layout, Example((), line, _plain(fields), specialization), (), _unused_text(fields))
        messages, used = _messages(layout, fields)
    except Refused as refusal:
        severity = Severity.WARNING if isinstance(refusal, LeftOut) else Severity.ERROR
        return Row(layout, None, (Finding(line, refusal.name, severity, refusal.reason),))
    warnings = tuple(Finding(line, layout, Severity.WARNING, reason) for reason in _doubts(messages))
    remarks = (*_markup(layout, messages), *_unused_in_turns(layout, fields), *row_remarks(fields, used))
    messages = _with_system(messages, prompts.by_specialization.get(specialization, ""))
    return Row(layout, Example(messages, line, "", specialization), warnings, tuple(dict.fromkeys(remarks)))


def _layout(fields: Mapping[str, Any]) -> str:
    """The layout with all its fields present, or else the first that is begun; empty if none is.

    Of a table that was merged, a row has the other layouts' fields too, without values. A row that has no
    values at all is told by its names what it lacks.
    """
    filled = {name for name, value in fields.items() if not (is_empty if name in CHATS else _is_blank)(value)}
    return _layout_by(filled) or _layout_by(fields.keys())


def _layout_by(names: AbstractSet[str]) -> str:
    for name in CHATS:
        if name in names:
            return name
    begun = [pair for pair in PAIRS if pair.asks in names]
    whole = [pair for pair in begun if not names.isdisjoint(pair.answers)]
    if whole or begun:
        return (whole or begun)[0].name
    return "text" if "text" in names else ""


def _messages(layout: str, fields: Mapping[str, Any]) -> tuple[tuple[Message, ...], set[str]]:
    """The row's chat with its own system prompt, and the fields that it is made of."""
    if layout in CHATS:
        chat, used = _chat(layout, fields), {layout}
    elif layout:
        chat, used = _pair(next(pair for pair in PAIRS if pair.name == layout), fields)
    elif is_preference(fields):
        raise Refused("chosen", PREFERENCE)
    else:
        present = ", ".join(list(fields)[:8]) or "nothing"
        raise Refused("", f"unknown fields: {present}; use one of {', '.join(LAYOUTS)}")
    return _with_own_system(layout, chat, fields), used | set(SYSTEM)


def _pair(pair: Pair, fields: Mapping[str, Any]) -> tuple[tuple[Message, ...], set[str]]:
    present = sorted(
        (name for name in pair.answers if name in fields), key=lambda name: _is_blank(fields[name])
    )
    answer = present[0] if present else None
    if answer is None:
        if is_preference(fields):
            raise Refused("chosen", PREFERENCE)
        other = next((name for name in fields if name in ANSWERS), "")
        hint = f"; rename {other!r}" if other else ""
        wanted = " or ".join(pair.answers)
        raise Refused(pair.answers[0], f"missing; a row with {pair.asks!r} needs {wanted}{hint}")
    passages = [name for name in PASSAGES if name != pair.asks]
    asked = [_text(fields, pair.asks), *(_optional(fields, name) for name in passages)]
    question = "\n\n".join(part for part in asked if part)
    turns = (Message("user", question), Message("assistant", _text(fields, answer)))
    return turns, {pair.asks, answer, *passages}


def _chat(layout: str, fields: Mapping[str, Any]) -> tuple[Message, ...]:
    for name in ("context", "passage"):
        if not is_empty(fields.get(name)):
            raise Refused(name, f"has no place beside {layout}; write it into the turn that it belongs to")
    chat = tuple(_turns(layout, fields[layout], *CHATS[layout]))
    if is_preference(fields) and chat[-1].role != "assistant":
        raise Refused("chosen", PREFERENCE)
    if not any(turn.is_trained for turn in _checked(layout, chat) if turn.role == "assistant"):
        raise LeftOut(layout, "left out: each answer is marked as not to be trained on")
    return chat


def _plain(fields: Mapping[str, Any]) -> str:
    for name in SYSTEM:
        if _optional(fields, name):
            raise Refused(name, "has no place beside text; write the row as messages")
    return _text(fields, "text")


def _turns(
    layout: str, turns: Any, role_key: str, text_key: str, roles: Mapping[str, str]
) -> Iterator[Message]:
    """The chat's turns; only an assistant's can be marked as not trained."""
    if not isinstance(turns, list):
        raise Refused(layout, f"must be a list, not {kind(turns)}")
    if not turns:
        raise Refused(layout, "is an empty list")
    for index, turn in enumerate(turns):
        place = f"{layout}[{index}]"
        if not isinstance(turn, dict):
            raise Refused(place, f"must be an object, not {kind(turn)}")
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in roles:
            shown = repr(role[:40]) if isinstance(role, str) else kind(role)
            raise Refused(f"{place}.{role_key}", f"unknown role {shown}; use one of {', '.join(roles)}")
        # Before the text: a turn that calls a tool often has none.
        is_learnt = is_trained(turn, place) or roles[role] != "assistant"
        yield Message(roles[role], _text(turn, text_key, place=f"{place}."), is_learnt)


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


def _markup(layout: str, messages: tuple[Message, ...]) -> Iterator[Remark]:
    for message in messages:
        if mark := chat_markup(message.content):
            yield layout, f"a turn holds marks of a chat format ({mark}), and the template adds its own"


def _unused_in_turns(layout: str, fields: Mapping[str, Any]) -> Iterator[Remark]:
    if layout in CHATS:
        role_key, text_key, roles = CHATS[layout]
        for turn in fields[layout]:
            is_answer = roles[turn[role_key]] == "assistant"
            for name, reason in turn_remarks(turn, {role_key, text_key}, is_answer=is_answer):
                yield f"{layout}[].{name}", reason


def _unused_text(fields: Mapping[str, Any]) -> tuple[Remark, ...]:
    unused = row_remarks(fields, {"text", *SYSTEM})
    if mark := chat_markup(fields["text"]):
        reason = f"holds marks of a chat format ({mark}): they and the user's words are trained on as well"
        return (("text", f"{reason}; write the rows as messages"), *unused)
    return tuple(unused)


def _with_own_system(
    layout: str, chat: tuple[Message, ...], fields: Mapping[str, Any]
) -> tuple[Message, ...]:
    """The chat after the row's own system prompt."""
    own = {name: text for name in SYSTEM if (text := _optional(fields, name))}
    first = {f"{layout}[0]": chat[0].content} if chat[0].role == "system" else {}
    if len({text.strip() for text in (own | first).values()}) > 1:
        raise Refused(next(iter(own)), f"differs from {list(own | first)[-1]}; give one system prompt a row")
    return chat if first or not own else (Message("system", next(iter(own.values()))), *chat)


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
        raise Refused(place + name, f"must be a string, not {kind(value)}")
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
    return "" if _is_blank(fields.get(name)) else _text(fields, name)


def _is_blank(value: Any) -> bool:
    """As `is_empty`, of a field of words: an answer may well be `[]`, or `null`."""
    return not value.strip() if isinstance(value, str) else is_empty(value)
