"""Examples as chats, and what is asked in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuroweaver.trainer.data.rows import Example, Message

Messages = Sequence[Mapping[str, Any]]
"""Turns with `role` and `content`; an assistant's with `is_trained` false is context alone."""


def messages_of(example: Example) -> list[dict[str, Any]]:
    """The example as a chat; a plain text is all the assistant's."""
    if example.text:
        return [{"role": "assistant", "content": example.text}]
    return [
        {"role": message.role, "content": message.content}
        | ({} if message.is_trained else {"is_trained": False})
        for message in example.messages
    ]


def last_exchange(example: Example) -> tuple[Sequence[Message], str] | None:
    """The conversation up to the last answer to be learnt, and that answer; None where nothing is asked.

    Turns of the assistant in a row are one answer.
    """
    messages = example.messages
    learnt = [place for place, turn in enumerate(messages) if turn.role == "assistant" and turn.is_trained]
    if not learnt:
        return None
    begin = end = learnt[-1] + 1
    while begin and messages[begin - 1].role == "assistant":
        begin -= 1
    if not begin or messages[begin - 1].role != "user":
        return None
    return messages[:begin], "\n\n".join(turn.content for turn in messages[begin:end] if turn.is_trained)
