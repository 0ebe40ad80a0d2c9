"""The questions of a data set, as prompts for reinforcement learning and with their answers as references."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from neuroweaver.trainer.data.rows import Example, Message
from neuroweaver.trainer.data.specialization import system_prompts
from neuroweaver.trainer.data.turns import Messages, last_exchange

SPEAKERS = {"system": "Instruction", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Question:
    """A conversation up to the answer, and the answer that the data set gives as a reference.

    text: what a judge reads of it.
    """

    line: int
    text: str
    messages: Messages
    reference: str
    specialization: str

    @property
    def id(self) -> str:
        return f"line-{self.line}"


def questions_of(examples: Sequence[Example]) -> Iterator[Question]:
    for example in examples:
        exchange = last_exchange(example)
        if exchange is None:
            continue
        asked, reference = exchange
        yield Question(
            line=example.line,
            text=_text(asked),
            messages=[{"role": message.role, "content": message.content} for message in asked],
            reference=reference,
            specialization=example.specialization,
        )


def _text(asked: Sequence[Message]) -> str:
    """The last question, then what came before it: a judge that reads the start alone has the question."""
    earlier = without_system([asdict(message) for message in asked[:-1]])
    before = [f"{SPEAKERS[turn['role']]}: {turn['content']}" for turn in earlier]
    return "\n\n".join([asked[-1].content, *(["Said before:", *before] if before else [])])


def ask(system_prompt: str, question: str) -> Messages:
    return [{"role": "system", "content": system_prompt}, {"role": "user", "content": question}]


def without_system(messages: Messages) -> Messages:
    """The conversation as a reward model reads it.

    The instruction of a specialisation is the same before every prompt: it tells no answers apart and costs
    many tokens. A row's own instruction stays, for it decides which answer is good.
    """
    shared = {("system", prompt) for prompt in system_prompts().values()}
    return [message for message in messages if (message["role"], message["content"]) not in shared]


def rated(question: Question) -> Messages:
    """The question with the data set's answer, as a reward model reads it."""
    return [*without_system(question.messages), {"role": "assistant", "content": question.reference}]


def choose(
    examples: Sequence[Example],
    specialization: str,
    count: int,
    seed: int,
    is_wanted: Callable[[Question], bool] = lambda _: True,
) -> list[Question]:
    """Up to `count` wanted questions drawn by the seed, those of the specialisation first.

    Files are often sorted by subject, so that their first rows are no sample.
    """

    def order(question: Question) -> tuple[bool, bytes]:
        drawn = hashlib.sha256(f"{seed}\n{question.id}\n{question.text}".encode()).digest()
        return question.specialization != specialization, drawn

    return list(islice(filter(is_wanted, sorted(questions_of(examples), key=order)), count))
