"""What a row or a turn says beside its words: marks that leave it out, fields that training cannot use."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

KINDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    str: "a string",
}
VERDICTS = ("true", "false")
NUMBER = re.compile(r"[-+]?[0-9.]+")
WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}

ROW_WEIGHTS = ("weight", "train")
# OpenAI, Mistral and SlimOrca; Axolotl; ms-swift.
TURN_WEIGHTS = ("weight", "train", "training", "loss")
# KTO in TRL and in LLaMA-Factory.
LABELS = ("label", "kto_tag")

_TOOLS = "tools are not trained on; leave such rows out, or remove the field if their answers need no tool"
_CALL = "calls of tools are not trained on; leave such rows out"
_MEDIA = "only text is trained on; leave such rows out"
REFUSED_IN_ROWS = {
    "tools": _TOOLS,
    "functions": _TOOLS,
    "history": "write the earlier turns and this one as messages",
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), _MEDIA),
}
REFUSED_IN_TURNS = {
    **dict.fromkeys(("tool_calls", "function_call", "tool_call_id"), _CALL),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), _MEDIA),
    "train_detail": "parts of a turn cannot be chosen; mark the whole turn with train",
}
NOT_USED = "is not used"
REASONING = ("reasoning_content", "reasoning", "thinking")
NO_REASONING = "is not used: the answer is learnt without its reasoning"
PREFERENCE = "a preference pair; give one answer a row, as prompt and completion"

CHAT_MARKUP = re.compile(
    r"\[/?INST\]|<</?SYS>>|<\|im_(?:start|end)\|>|<\|(?:start|end)_header_id\|>|<\|eot_id\|>"
    r"|<(?:start|end)_of_turn>|<\|(?:system|user|assistant|end)\|>"
    r"|###? ?(?:Human|Assistant|User|System|Instruction|Response)\b:?"
)
# Each is a word of plain texts as well; together they are a chat.
ASKING = re.compile(r"^[^\S\n]*(?:human|user):", re.IGNORECASE | re.MULTILINE)
ANSWERING = re.compile(r"^[^\S\n]*(?:assistant|gpt):", re.IGNORECASE | re.MULTILINE)

Remark = tuple[str, str]
"""A field, and what is to be said of it."""


class Refused(Exception):
    """This row cannot be used."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name
        self.reason = reason


class LeftOut(Refused):
    """The row itself says that nothing is to be learnt from it."""


def check_row(fields: Mapping[str, Any]) -> None:
    """Raises Refused for a field whose meaning training would lose, LeftOut for a mark that says so."""
    for name, reason in REFUSED_IN_ROWS.items():
        if not is_empty(fields.get(name)):
            raise Refused(name, reason)
    for name in ROW_WEIGHTS:
        if not _switch(fields.get(name), name):
            raise LeftOut(name, f"left out: {name} is {_shown(fields[name])}")
    for name in LABELS:
        if is_bad_answer(fields.get(name), name):
            raise LeftOut(name, f"left out: {name} is false, which marks a bad answer")


def is_bad_answer(label: Any, name: str) -> bool:
    """Whether a row's label says so. Raises Refused for a number: 0 may be the first of several classes."""
    word = str(label).strip().lower()
    if isinstance(label, int | float | str) and word not in VERDICTS and NUMBER.fullmatch(word):
        raise Refused(
            name, f"{word[:40]} is unclear; write true or false for a good or bad answer, or rename it"
        )
    return isinstance(label, bool | str) and word == "false"


def is_trained(turn: Mapping[str, Any], place: str) -> bool:
    """Whether a turn of a chat is to be learnt. Raises Refused for a field whose meaning would be lost."""
    for name, reason in REFUSED_IN_TURNS.items():
        if not is_empty(turn.get(name)):
            raise Refused(f"{place}.{name}", reason)
    # Each is read, so that a fault in the second is found although the first says no.
    marks = [_switch(turn.get(name), f"{place}.{name}") for name in TURN_WEIGHTS]
    return all(marks)


def row_remarks(fields: Mapping[str, Any], used: Collection[str]) -> Iterator[Remark]:
    """What is not used of a row beside the fields `used`."""
    for name, value in fields.items():
        is_mark = name in ROW_WEIGHTS or (name in LABELS and str(value).strip().lower() in VERDICTS)
        if name not in used and name != "specialization" and not is_mark and not is_empty(value):
            yield name[:40], NOT_USED


def turn_remarks(turn: Mapping[str, Any], used: Collection[str], *, is_answer: bool) -> Iterator[Remark]:
    """What is not used of a chat's turn beside the fields `used`."""
    for name, value in turn.items():
        if name in used or is_empty(value):
            continue
        if name not in TURN_WEIGHTS:
            yield name[:40], NO_REASONING if name in REASONING else NOT_USED
        elif not is_answer and _switch(value, name):
            yield name, "is not used: only an assistant's turns are trained on"


def chat_markup(text: str) -> str:
    """The first mark of a rendered chat in the text, or empty."""
    if mark := CHAT_MARKUP.search(text):
        return mark.group()
    asks, answers = ASKING.search(text), ANSWERING.search(text)
    return f"{asks.group().strip()} and {answers.group().strip()}" if asks and answers else ""


def is_preference(fields: Mapping[str, Any]) -> bool:
    return {"chosen", "rejected"} <= fields.keys()


def is_empty(value: Any) -> bool:
    """Whether the field is there without a value, as tables leave it in rows that have none."""
    if isinstance(value, str):
        return value.strip() in {"", "[]", "{}", "null"}
    return value is None or value in ([], {})


def kind(value: Any) -> str:
    return "null" if value is None else KINDS.get(type(value), type(value).__name__)


def _switch(value: Any, place: str) -> bool:
    """True where nothing is said."""
    if is_empty(value):
        return True
    said = WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if said is None and isinstance(value, bool | int | float) and value in (0, 1):
        said = bool(value)
    if said is None:
        raise Refused(place, f"must be 0 or 1, or true or false, not {_shown(value)}")
    return said


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value[:40])
    return json.dumps(value)[:40] if isinstance(value, int | float) else kind(value)
