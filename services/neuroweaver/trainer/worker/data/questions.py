"""The questions of a data set, as prompts for reinforcement learning and with their answers as references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neuroweaver.trainer.data.rows import Example
from neuroweaver.trainer.worker.data.chat import Messages


@dataclass(frozen=True)
class Question:
    """A conversation up to the answer, and the answer that the data set gives as a reference."""

    id: str
    text: str
    messages: Messages
    reference: str
    specialization: str


def questions_of(examples: Sequence[Example]) -> Iterator[Question]:
    for example in examples:
        if not example.messages or example.messages[-1].role != "assistant":
            continue
        messages = messages_of(example)
        yield Question(
            id=f"line-{example.line}",
            text=str(messages[-2]["content"]),
            messages=messages[:-1],
            reference=example.messages[-1].content,
            specialization=example.specialization,
        )


def messages_of(example: Example) -> list[dict[str, str]]:
    """The example as a chat; a plain text is all the assistant's."""
    if example.text:
        return [{"role": "assistant", "content": example.text}]
    return [{"role": message.role, "content": message.content} for message in example.messages]


def ask(system_prompt: str, question: str) -> Messages:
    return [{"role": "system", "content": system_prompt}, {"role": "user", "content": question}]


def without_system(messages: Messages) -> Messages:
    """The conversation as a reward model reads it.

    The instruction is the same before every prompt: it tells no answers apart and costs many tokens.
    """
    return [message for message in messages if message["role"] != "system"]


def choose(examples: Sequence[Example], specialization: str, count: int) -> list[Question]:
    """Up to `count` questions, those of the specialisation first."""
    questions = sorted(questions_of(examples), key=lambda question: question.specialization != specialization)
    return questions[:count]
