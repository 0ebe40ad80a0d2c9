"""What a judge is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from neuroweaver.trainer.data.specialization import Criterion
from neuroweaver.trainer.worker.process.monitor import Monitor

Rubric = Sequence[Criterion]


class JudgeUnavailable(Exception):
    """No judge can work: wrong key, no such model, no endpoint, or too many judgements are missing."""


@dataclass(frozen=True, slots=True)
class JudgeItem:
    prompt: str
    response: str
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """A score from 0 to 10, the same for each criterion of the rubric by name, and the reason in words."""

    score: float
    reason: str
    criteria: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    prompt: str
    a: str
    b: str
    reference: str | None = None


class Verdict(StrEnum):
    """Which answer of a comparison is better."""

    A = "a"
    B = "b"
    TIE = "tie"


@dataclass(slots=True)
class Usage:
    """What a judge has consumed so far.

    calls: answers of an endpoint, or answers that the embedded judge scored; cached: judgements that cost
    nothing; cut: texts of which the judge reads the beginning alone; cost_usd: US dollars, 0 where no prices
    were given.
    """

    calls: int = 0
    cached: int = 0
    missing: int = 0
    cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Judge(Protocol):
    """Scores and compares answers. A missing judgement is None, never an invented number."""

    name: str
    """`embedded`, or the model's name."""
    usage: Usage

    def score(self, items: Sequence[JudgeItem], rubric: Rubric, monitor: Monitor) -> list[Judgement | None]:
        """A judgement for each item, in order. Raises JudgeUnavailable, and Stopped through the monitor."""

    def compare(self, items: Sequence[Comparison], rubric: Rubric, monitor: Monitor) -> list[Verdict | None]:
        """A verdict for each item, in order. Raises as `score`."""
