"""Which examples are held out: whole conversations, so that no row is tested on what another row taught."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise

from neuroweaver.trainer.data.rows import Example

# A conversation of more rows than this and than are to be held out always trains.
SMALL = 10


def split(
    examples: Sequence[Example], validation_fraction: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Train and validation, each in the given order.

    Rows of one conversation stay together; where it goes depends on its first words and the seed, so that it
    stays there when others come or go. Neither side is left empty if two conversations are there: the nearest
    to the other side moves over. Raises ValueError if the fraction is not in [0, 1).
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), not {validation_fraction}")
    conversations = _conversations(examples, validation_fraction)
    rows = Counter(conversations)
    places = {conversation: _place(conversation, seed) for conversation in rows}
    largest = max(validation_fraction * len(examples), min(SMALL, len(examples) / 2))
    held_out = {it for it, place in places.items() if place < validation_fraction and rows[it] <= largest}
    if validation_fraction and len(rows) > 1:
        if not held_out:
            held_out = {min(rows, key=lambda it: (rows[it] > largest, places[it]))}
        elif len(held_out) == len(rows):
            held_out.remove(max(rows, key=lambda it: places[it]))
    sides = list(zip(examples, (it in held_out for it in conversations), strict=True))
    return tuple(one for one, is_out in sides if not is_out), tuple(one for one, is_out in sides if is_out)


def _conversations(examples: Sequence[Example], validation_fraction: float) -> list[bytes]:
    """For each example a key that the rows of its conversation share.

    Rows belong together if they begin with the same words of the user or hold the same question with the same
    answer. If formulas such as a greeting join so many rows that too few are left to hold out, the beginning
    alone counts; and if that is a formula as well, only a row that another one goes on from.
    """
    keys: list[bytes] = []
    for marks in (_turns, _beginning):
        keys = _joined([list(marks(example)) for example in examples])
        outside = len(examples) - max(Counter(keys).values(), default=0)
        if outside and outside >= validation_fraction * len(examples):
            return keys
    wholes = {_whole(example) for example in examples}
    return _joined(
        [[_whole(example), *(mark for mark in _prefixes(example) if mark in wholes)] for example in examples]
    )


def _joined(marks: Sequence[Sequence[bytes]]) -> list[bytes]:
    """The smallest first mark of all rows that are joined by common marks, for each row."""
    parents: dict[bytes, bytes] = {}

    def root(mark: bytes) -> bytes:
        while (parent := parents.setdefault(mark, mark)) != mark:
            parents[mark] = parents[parent]
            mark = parents[mark]
        return mark

    for first, *others in marks:
        for other in others:
            parents[root(other)] = root(first)
    names: dict[bytes, bytes] = {}
    for first, *_ in marks:
        names[root(first)] = min(names.get(root(first), first), first)
    return [names[root(first)] for first, *_ in marks]


def _beginning(example: Example) -> Iterator[bytes]:
    asked = next((message.content for message in example.messages if message.role == "user"), example.text)
    yield _digest([asked])


def _turns(example: Example) -> Iterator[bytes]:
    yield from _beginning(example)
    for one, other in pairwise(example.messages):
        if (one.role, other.role) == ("user", "assistant"):
            yield _digest([one.content, "answered", other.content])


def _prefixes(example: Example) -> Iterator[bytes]:
    asked = [message.content for message in example.messages if message.role == "user"] or [example.text]
    return map(_digest, accumulate([text] for text in asked))


def _whole(example: Example) -> bytes:
    *_, last = _prefixes(example)
    return last


def _digest(texts: Iterable[str]) -> bytes:
    return hashlib.sha256("\0".join(map(plain_words, texts)).encode()).digest()


def plain_words(text: str) -> str:
    """The text without regard to case and spacing."""
    return " ".join(text.split()).casefold()


def _place(conversation: bytes, seed: int) -> float:
    """A number in [0, 1) drawn from the conversation's key."""
    drawn = hashlib.sha256(f"{seed}\0".encode() + conversation).digest()
    return int.from_bytes(drawn[:6], "big") / (1 << 48)
