"""Preference pairs out of a judge's scores."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from neuroweaver.trainer.data.turns import Messages

MIN_MARGIN: Final = 1.0
HELDOUT_FRACTION: Final = 0.2


class NotEnoughFeedback(ValueError):
    """The judge's feedback holds too few preferences to learn from."""


@dataclass(frozen=True)
class FeedbackGroup:
    """The responses to one conversation, which ends where the assistant answers, with the judge's scores.

    A score is None where the judgement failed.
    """

    messages: Messages
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one conversation, of which the judge prefers one."""

    messages: Messages
    chosen: str
    rejected: str


def group_feedback(
    rows: Iterable[Mapping[str, Any]], messages_of: Callable[[str], Messages]
) -> list[FeedbackGroup]:
    """Rows of `prompt_id`, `text` and `score`, grouped by conversation.

    Prompts with the same messages form one group whatever their ids, so that a split by group never shows the
    same prompt on both sides. Within a group, a text that came twice counts once, with its first score.
    """
    groups: dict[str, tuple[Messages, dict[str, float | None]]] = {}
    for row in rows:
        messages = messages_of(row["prompt_id"])
        _, scores = groups.setdefault(_key(messages), (messages, {}))
        if scores.get(row["text"]) is None:
            scores[row["text"]] = row["score"]
    return [FeedbackGroup(messages, scores) for messages, scores in groups.values()]


def pairs_from_feedback(
    groups: Sequence[FeedbackGroup], *, rlaif_threshold: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Pairs to train on and pairs to check with, of conversations that begin differently.

    Where most begin with the same words of the user, a greeting, those that go on differently are told apart.

    Two responses make a pair if their scores differ by MIN_MARGIN or more and not both reach
    `rlaif_threshold`: which of two good answers a judge prefers is mostly noise. A response without a score
    is never used. HELDOUT_FRACTION of the conversations that have pairs is held out: at least one if there
    are two or more. `seed` and the conversations alone choose them.
    """
    useful = [(group.messages, pairs) for group in groups if (pairs := _pairs(group, rlaif_threshold))]
    beginnings = Counter(_beginning(messages) for messages, _ in useful)
    key_of = _key if max(beginnings.values(), default=0) > len(useful) / 2 else _beginning
    by_key: dict[str, list[PreferencePair]] = defaultdict(list)
    for messages, pairs in useful:
        by_key[key_of(messages)] += pairs
    keys = sorted(by_key, key=lambda key: _place(key, seed))
    count = min(max(1, round(HELDOUT_FRACTION * len(keys))), len(keys) - 1) if len(keys) > 1 else 0
    heldout = [pair for key in keys[:count] for pair in by_key[key]]
    train = [pair for key in keys[count:] for pair in by_key[key]]
    return train, heldout


def why_no_more(scores: Sequence[float], groups: Sequence[FeedbackGroup], rlaif_threshold: float) -> str:
    """Why the feedback holds no more pairs, and what to change. scores: of all answers."""
    if not scores:
        return "the judge scored no answer"
    low, high = min(scores), max(scores)
    if high - low < MIN_MARGIN:
        given = f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}"
        return (
            f"the judge does not tell answers apart, since all {len(scores)} got {given}: choose another "
            "feedback_model"
        )
    if low >= rlaif_threshold:
        return (
            f"all {len(scores)} answers got {low:.1f} or more, and two that reach rlaif_threshold, "
            f"{rlaif_threshold:g}, make no pair: raise it, or set enable_rlaif to false"
        )
    if not any(_pairs(group, math.inf) for group in groups):
        return (
            f"the judge does not tell answers to one question apart, since their scores differ by less than "
            f"{MIN_MARGIN:g}: choose another feedback_model"
        )
    return "raise rlaif_samples or responses_per_prompt"


def longer_is_better(pairs: Sequence[PreferencePair]) -> float:
    """Accuracy of the rule that prefers the longer response; equal lengths count half.

    Judges favour length, so a reward model is worth something only as far as it beats this rule.
    """
    points = 0.0
    for pair in pairs:
        difference = len(pair.chosen) - len(pair.rejected)
        points += 0.5 if difference == 0 else float(difference > 0)
    return points / len(pairs)


def ordered_prompts(pairs: Sequence[PreferencePair], is_right: Sequence[bool]) -> tuple[int, int]:
    """Of how many conversations half the pairs or more are in the judge's order, and how many there are.

    Pairs of one conversation share its responses, so they are no independent evidence; conversations are.
    """
    rights: dict[str, list[bool]] = {}
    for pair, right in zip(pairs, is_right, strict=True):
        rights.setdefault(_key(pair.messages), []).append(right)
    return sum(2 * sum(each) >= len(each) for each in rights.values()), len(rights)


def _pairs(group: FeedbackGroup, rlaif_threshold: float) -> list[PreferencePair]:
    scored = [(score, text) for text, score in group.scores.items() if score is not None]
    ordered = (sorted(two, key=lambda one: one[0]) for two in itertools.combinations(scored, 2))
    return [
        PreferencePair(group.messages, chosen, rejected)
        for (low, rejected), (high, chosen) in ordered
        if high - low >= MIN_MARGIN and low < rlaif_threshold
    ]


def _key(messages: Messages) -> str:
    return json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)


def _beginning(messages: Messages) -> str:
    return next((str(message["content"]) for message in messages if message["role"] == "user"), "")


def _place(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{key}".encode()).digest()
