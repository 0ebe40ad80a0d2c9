"""What shows of an English answer without understanding it: length, repetition, endings, leaked marks."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

# The commonest function words of English; prose holds 35 to 55 % of them, a list of keywords almost none.
_FUNCTION_WORDS = """
    a about after again all also although an and any are as at be because been before being both but
    by can could did do does each either else even every few first for from had has have he her here
    his how i if in into is it its just less let like may me might more most much must my near need
    neither no nor not now of off often on once one only or other our out over own per please rather
    same shall she should since so some soon still such than that the their them then there these
    they this those though through to too two under until up us usually very was we well were what
    when where whether which while who whose why will with within without would yes yet you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
# A determiner is followed by a noun or an adjective, or by one of a few function words.
DETERMINERS = frozenset({"a", "an", "the", "your", "my", "our", "their", "its"})
_AFTER_DETERMINER = """
    own other same more most first few next one two last once only very too usually much less even each before
    after little least just near need second while
"""
AFTER_DETERMINER = frozenset(_AFTER_DETERMINER.split())
WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
SENTENCE_END = re.compile(r"(?<=[.!?;:])[\"'\u201d\u2019)]*\s+|\n+")
WHOLE_ENDINGS = (".", "!", "?", ".)", "!)", "?)", '."', '!"', '?"', "\u2026", ".\u201d", "!\u201d", "?\u201d")
LEAKS = re.compile(
    r"<\|[^|>]{0,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|\ufffd|\x00"
    r"|(?:^|\n)\s*(?:user|assistant|system|human)\s*:|(?:^|\n)(?:user|assistant|system)\n"
    r"|(?:^|\n)#{2,4} *(?:instruction|response)",
    re.IGNORECASE,
)
MARKUP = re.compile(
    r"\*\*|```|(?:^|\n)\s*(?:[-*\u2022]|\d+[.)])\s|(?:^|\n)#{1,6} |\|.*\|.*\||</?[a-z]+>|https?://",
    re.IGNORECASE,
)
PERSUASION = re.compile(
    r"\b(?:ignore (?:the |all |any |previous |your )*(?:rubric|instructions?)"
    r"|(?:give|award|rate|score)\b.{0,40}\b10\b|as (?:a|the) (?:judge|grader)|full marks|10\s*/\s*10)",
    re.IGNORECASE,
)
ASKED_WORDS = re.compile(r"(\d+) (?:to|and|-) (\d+) words")
CHUNK_WORDS = 40
MAX_SENTENCES = 40


@dataclass(frozen=True, slots=True)
class Form:
    """Each from 0 (bad) to 1 (nothing to object to)."""

    length: float
    prose: float
    variety: float
    own_words: float
    whole: float
    clean: float
    plain: float
    honest_means: float

    @property
    def integrity(self) -> float:
        """What multiplies the whole score: an answer that is no answer earns nothing for its content."""
        content = self.prose * self.variety * self.own_words * self.clean * self.honest_means
        return content * _at_least(self.length, 0.3) * _at_least(self.whole, 0.7)


def words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def sentences(text: str) -> list[str]:
    """The sentences, at most forty; what runs on without an end is cut into pieces of forty words."""
    parts = [sentence.split() for sentence in SENTENCE_END.split(text.strip())]
    chunks = (part[at : at + CHUNK_WORDS] for part in parts for at in range(0, len(part), CHUNK_WORDS))
    return [" ".join(chunk) for chunk in chunks][:MAX_SENTENCES]


def asked_range(rubric_text: str, reference: str | None) -> tuple[int, int]:
    """The words asked for: as the rubric says (`40 to 80 words`), else by the reference, else 15 to 200."""
    if asked := ASKED_WORDS.search(rubric_text):
        low, high = int(asked[1]), int(asked[2])
        return min(low, high), max(low, high)
    if reference and (count := len(words(reference))):
        return max(1, count // 2), count * 2
    return 15, 200


def examine(answer: str, prompt: str, asked: tuple[int, int]) -> Form:
    """The form of `answer`; `asked` is the least and the largest number of words."""
    said = words(answer)
    return Form(
        length=_length(len(said), asked),
        prose=_prose(said, answer),
        variety=_variety(said, answer),
        own_words=_own_words(said, words(prompt)),
        whole=1.0 if answer.rstrip().endswith(WHOLE_ENDINGS) else 0.5,
        clean=0.4 if LEAKS.search(answer) else 1.0,
        plain=0.6 if MARKUP.search(answer) else 1.0,
        honest_means=0.3 if PERSUASION.search(answer) and not PERSUASION.search(prompt) else 1.0,
    )


def _length(count: int, asked: tuple[int, int]) -> float:
    """1 within the range; falling to 0 at no words and at four times the upper end."""
    low, high = asked
    if count < low:
        return count / low
    return 1.0 if count <= high else _ramp(count, 4 * high, high)


def _prose(said: list[str], answer: str) -> float:
    """Falls where words hang together by commas or by nothing at all."""
    if not said:
        return 0.0
    function = sum(word in FUNCTION_WORDS for word in said) / len(said)
    if len(said) < 5:  # too few to tell
        return 1.0
    # Two content words in three are the densest prose; a list of keywords has no third word.
    density = _ramp(function, 0.12, 0.28)
    listing = _ramp(answer.count(",") / len(said), 0.5, 0.25)
    return min(density, listing, _order(said))


def _order(said: list[str]) -> float:
    """Falls where words stand in no order of English: with the share of determiners that determine nothing.

    Of 932 answers written as prose 99 % lie below 0.25; the same answers shuffled have 0.43 in the median.
    """
    followers = [follower for word, follower in pairwise([*said, "and"]) if word in DETERMINERS]
    if len(followers) < 3:
        return 1.0
    wrong = sum(word in FUNCTION_WORDS and word not in AFTER_DETERMINER for word in followers)
    return _ramp(wrong / len(followers), 0.36, 0.18)


def _variety(said: list[str], answer: str) -> float:
    """Falls with the share of sentences and of three-word runs that were there before."""
    texts = [" ".join(words(sentence)) for sentence in sentences(answer)]
    runs = _runs(said)
    distinct = len(set(runs)) / len(runs) if runs else 1.0
    anew = len(set(texts)) / len(texts) if texts else 1.0
    # One short word repeated: `stop stop stop`.
    commonest = Counter(said).most_common(1)[0][1] / len(said) if len(said) >= 8 else 0.0
    return min(_ramp(distinct, 0.3, 0.85), _ramp(anew, 0.2, 0.9), _ramp(commonest, 0.5, 0.2))


def _own_words(said: list[str], asked: list[str]) -> float:
    """Falls with the share of three-word runs that stand in the question already."""
    runs, there = _runs(said), set(_runs(asked))
    if not runs:
        return 1.0
    return _ramp(sum(run in there for run in runs) / len(runs), 0.8, 0.3)


def _runs(said: list[str]) -> list[tuple[str, str, str]]:
    """All runs of three words."""
    return list(zip(said, said[1:], said[2:], strict=False))


def _ramp(value: float, bad: float, good: float) -> float:
    """0 at `bad` and beyond, 1 at `good` and beyond, straight between."""
    return min(1.0, max(0.0, (value - bad) / (good - bad)))


def _at_least(value: float, floor: float) -> float:
    return floor + (1 - floor) * value
