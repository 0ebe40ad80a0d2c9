"""An answer while it is made: its tokens, its text, and when it ends."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from neuroweaver.serving.engine.detokenize import Detokenizer, StopText

STOP: Final = "stop"
LENGTH: Final = "length"


@dataclass(frozen=True, slots=True)
class Draw:
    """temperature: 0 is greedy, and so is what is as good as 0.

    uniform: in [0, 1), the row's own random number for this token.
    """

    temperature: float
    top_p: float
    uniform: float


@dataclass(frozen=True, slots=True)
class Generation:
    """What to generate. prompt: token ids, at least one. max_tokens: at least 1.

    version: of the adapter. ends: token ids that end the answer; none for one of exactly `max_tokens`.
    """

    prompt: Sequence[int]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: Sequence[str] = ()
    version: str = ""
    ends: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of an answer. tokens: how many it has by now. finish_reason: set with the last one.

    error: the engine failed; there is no more to come.
    """

    text: str
    tokens: int
    finish_reason: str | None = None
    error: str = ""

    @property
    def is_last(self) -> bool:
        return bool(self.finish_reason or self.error)


class Answer:
    """A generation under way. Its owner may cancel it from any thread; the rest is the engine's own."""

    def __init__(self, generation: Generation, tokenizer: Any) -> None:
        self.generation = generation
        self.is_cancelled = False
        self.tokens = list(generation.prompt)
        self.cached = 0  # of `tokens`, those that the network holds
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = StopText(generation.stops)
        self._random = random.Random(generation.seed)
        self.start_time = time.monotonic()

    @property
    def made(self) -> int:
        return len(self.tokens) - len(self.generation.prompt)

    @property
    def pending(self) -> list[int]:
        return self.tokens[self.cached :]

    def draw(self) -> Draw:
        asked = self.generation
        uniform = self._random.random() if asked.temperature > 0 else 0.0
        return Draw(asked.temperature, asked.top_p, uniform)

    def take(self, token: int, *, max_context: int) -> Delta:
        self.tokens.append(token)
        if token in self.generation.ends:
            return self._last(STOP)
        text = self._stop.add(self._detokenizer.add(token))
        if self._stop.has_stopped:
            return Delta(text, self.made, STOP)
        if self.made >= self.generation.max_tokens or len(self.tokens) >= max_context:
            return self._last(LENGTH, text)
        return Delta(text, self.made)

    def _last(self, reason: str, text: str = "") -> Delta:
        text += self._stop.add(self._detokenizer.end())
        if self._stop.has_stopped:
            return Delta(text, self.made, STOP)
        return Delta(text + self._stop.end(), self.made, reason)
