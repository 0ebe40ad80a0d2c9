"""A chat cut where the assistant's turns begin and end, for whoever trains on them or counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from neuroweaver.trainer.data.rows import Example, Message

Messages = Sequence[Mapping[str, Any]]
"""Turns with `role` and `content`; an assistant's with `is_trained` false is context alone."""

Segment = tuple[str, bool]
"""A stretch of rendered text, and whether the loss is computed on it."""

Render = Callable[[Messages, bool], str]
"""A chat through the model's template; with True it ends with the opening of an assistant turn."""


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


def segments(messages: Messages, render: Render, until_end: Callable[[str], str]) -> Iterator[Segment]:
    """The chat up to its last assistant turn: each turn with its end, and what stands before it.

    until_end: a rendered turn without what the template writes behind its end, which is never generated.
    Raises ValueError if the chat template renders a turn's context differently once the turn is there: such a
    template has no place where the turn begins.
    """
    rendered = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        whole = render(messages[: index + 1], False)
        context = _context(messages, index, whole, render)
        if not (context.startswith(rendered) and whole.startswith(context)):
            raise ValueError("the chat template rewrites earlier text when a turn is added")
        turn = until_end(whole[len(context) :])
        yield context[len(rendered) :], False
        yield turn, message.get("is_trained", True)
        rendered = context + turn


def _context(messages: Messages, index: int, whole: str, render: Render) -> str:
    if index == 0:  # nothing was asked: plain text, for which a template may still open with a system turn
        return whole[: max(0, whole.find(messages[0]["content"].strip()))]
    return render(messages[:index], True)
