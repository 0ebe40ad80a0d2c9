"""Preference pairs out of a judge's scores."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuroweaver.trainer.worker.data.chat import Messages


class NotEnoughFeedback(ValueError):
    """The judge's feedback holds too few preferences to learn from."""


@dataclass(frozen=True)
class JudgedResponse:
    """A response and the judge's score of it; None if the judgement failed."""

    text: str
    score: float | None


@dataclass(frozen=True)
class FeedbackGroup:
    """All judged responses to one conversation, which ends where the assistant answers."""

    messages: Messages
    responses: tuple[JudgedResponse, ...]


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one conversation; `margin` is by how much the judge scored the chosen one higher."""

    messages: Messages
    chosen: str
    rejected: str
    margin: float = 0.0


def group_feedback(
    rows: Iterable[Mapping[str, Any]], messages_of: Callable[[str], Messages]
) -> list[FeedbackGroup]:
    """Rows of `prompt_id`, `text` and `score`, grouped by conversation.

    Prompts with the same messages form one group whatever their ids, so that a split by group never shows the
    same prompt on both sides. Within a group, a text that came twice counts once, with its first score.
    """
    conversations: dict[str, Messages] = {}
    responses: dict[str, dict[str, float | None]] = {}
    for row in rows:
        messages = messages_of(row["prompt_id"])
        key = _key(messages)
        conversations[key] = messages
        scores = responses.setdefault(key, {})
        if scores.get(row["text"]) is None:
            scores[row["text"]] = row["score"]
    return [
        FeedbackGroup(messages, tuple(itertools.starmap(JudgedResponse, responses[key].items())))
        for key, messages in conversations.items()
    ]


def pairs_from_feedback(
    groups: Sequence[FeedbackGroup],
    *,
    rlaif_threshold: float,
    seed: int,
    min_margin: float = 1.0,
    heldout_fraction: float = 0.2,
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Pairs to train on and pairs to check with, of different conversations.

    Two responses make a pair if their scores differ by `min_margin` or more and not both reach
    `rlaif_threshold`: which of two good answers a judge prefers is mostly noise. A response without a score
    is never used. `heldout_fraction` of the conversations that have pairs is held out: at least one if there
    are two or more. `seed` and the conversations alone choose them.
    """
    by_key = {_key(group.messages): _pairs(group, rlaif_threshold, min_margin) for group in groups}
    keys = sorted((key for key, pairs in by_key.items() if pairs), key=lambda key: _place(key, seed))
    count = min(max(1, round(heldout_fraction * len(keys))), len(keys) - 1) if len(keys) > 1 else 0
    heldout = [pair for key in keys[:count] for pair in by_key[key]]
    train = [pair for key in keys[count:] for pair in by_key[key]]
    return train, heldout


def longer_is_better(pairs: Sequence[PreferencePair]) -> float:
    """Accuracy of the rule that prefers the longer response; equal lengths count half.

    Judges favour length, so a reward model is worth something only as far as it beats this rule.
    """
    points = 0.0
    for pair in pairs:
        difference = len(pair.chosen) - len(pair.rejected)
        points += 0.5 if difference == 0 else float(difference > 0)
    return points / len(pairs)


def _pairs(group: FeedbackGroup, rlaif_threshold: float, min_margin: float) -> list[PreferencePair]:
    scored = [(one.score, one.text) for one in group.responses if one.score is not None]
    pairs = []
    for first, second in itertools.combinations(scored, 2):
        (low, rejected), (high, chosen) = sorted([first, second], key=lambda one: one[0])
        if high - low >= min_margin and low < rlaif_threshold:
            pairs.append(PreferencePair(group.messages, chosen, rejected, high - low))
    return pairs


def _key(messages: Messages) -> str:
    return json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)


def _place(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{key}".encode()).digest()
