"""The answers of a chat as its template writes them, each behind its context."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from neuroweaver.base_models.chat_template import ChatTemplate
from neuroweaver.base_models.rendering import TemplateRefuses

# What no text holds: noncharacters of Unicode.
_BEGIN, _END = "\ufdd1", "\ufdd2"
_PROBE: Final = _BEGIN + _END
_ANY_THOUGHT: Final = re.compile(r"[<\[]/?think(?:ing)?[>\]]", re.IGNORECASE)
# A thought that the opening of an answer begins, as templates of reasoning models write it, or has behind it.
_THOUGHT: Final = re.compile(
    r"(?P<opens>[<\[]think(?:ing)?[>\]])(?P<space>\s*)(?P<closes>[<\[]/think(?:ing)?[>\]]\s*)?$",
    re.IGNORECASE,
)

_EVENLY: Final = 8
# Of answers in a chat: up to so many, each is rendered with its own context; beyond, a sample of them.
_MANY: Final = 100
# Each of them is rendered with all that precedes it, in a chat of any length.
_MAX_SAMPLE: Final = 100
# Where each answer needs its own context whatever it takes: rendered and encoded, that grows by the square.
_MAX_ANEW: Final = 500

Turn = tuple[str, str]
"""The rendered context of an answer, from the answer before it on, and the answer."""


def runs(template: ChatTemplate, quoted: Sequence[Mapping[str, Any]]) -> list[list[Turn]]:
    """The turns to be trained, in runs of which each turn's context continues the text of the one before."""
    answers = [
        place
        for place, turn in enumerate(quoted)
        if turn["role"] == "assistant" and turn.get("is_trained", True)
    ]
    if len(answers) > _MANY and (run := _long_run(template, quoted, answers)):
        return [run]
    refuse_many(answers)
    found: list[list[Turn]] = []
    text = ""
    for place in answers:
        context, answer = rendered_answer(template, quoted[: place + 1])
        if not found or not context.startswith(text):
            found.append([])
            text = ""
        found[-1].append((context[len(text) :], answer))
        text = context + answer
    return found


def refuse_many(turns: Sequence[Any]) -> None:
    if len(turns) > _MAX_ANEW:
        raise TemplateRefuses(
            f"it gives each of {len(turns)} answers of one chat a context of its own, which takes "
            f"too long: part the row into chats of at most {_MAX_ANEW} answers"
        )


def _long_run(
    template: ChatTemplate, quoted: Sequence[Mapping[str, Any]], answers: Sequence[int]
) -> list[Turn]:
    """The one run of a chat by its whole text; empty where a sample of its turns is written otherwise.

    What the template writes between an answer's context and its words, and from there to its end, is taken
    from the sample.
    """
    chat = quoted[: answers[-1] + 1]
    whole = template.render(chat, opens_turn=False)
    trained = set(answers)
    marked = [_marked(turn) if place in trained else turn for place, turn in enumerate(chat)]
    parts = re.split(f"([{_BEGIN}{_END}])", template.render(marked, opens_turn=False))
    if parts[1::2] != [_BEGIN, _END] * len(answers) or "".join(parts[::2]) != whole:
        return []
    places = _places(parts[::2])
    kinds = [_kind(quoted, place) for place in answers]
    sample = _sample(kinds)
    if len(sample) > _MAX_SAMPLE:
        return []
    edges: dict[Any, Turn] = {}
    for number in sample:
        context, answer = rendered_answer(template, quoted[: answers[number] + 1])
        begin, end = places[number]
        found = (whole[len(context) : begin], whole[end : len(context) + len(answer)])
        if whole[: len(context) + len(answer)] != context + answer or not len(context) <= begin:
            return []
        if edges.setdefault(kinds[number], found) != found:
            return []
    return _between(whole, places, [edges[kind] for kind in kinds])


def _between(whole: str, places: Sequence[tuple[int, int]], edges: Sequence[Turn]) -> list[Turn]:
    """The turns of a text whose answers are its `places` with what is to be before and behind each."""
    run: list[Turn] = []
    position = 0
    for (begin, end), (before, behind) in zip(places, edges, strict=True):
        start = begin - len(before)
        if start < position or not whole.startswith(before, start) or not whole.startswith(behind, end):
            return []
        run.append((whole[position:start], whole[start : end + len(behind)]))
        position = end + len(behind)
    return run


def _marked(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Marks around the words, within the space that a template may take away."""
    core = turn["content"].strip()
    return {**turn, "content": turn["content"].replace(core, f"{_BEGIN}{core}{_END}", 1)}


def _places(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Where every other of the texts begins and ends in all of them together."""
    ends = list(accumulate(map(len, texts)))
    return [(ends[number - 1], ends[number]) for number in range(1, len(texts), 2)]


def _kind(quoted: Sequence[Mapping[str, Any]], place: int) -> Any:
    """By what a template may tell an answer from others."""
    content = quoted[place]["content"]
    before, behind = quoted[max(place - 1, 0)], quoted[min(place + 1, len(quoted) - 1)]
    # The space itself: a template that keeps it writes it into the answer, and others leave it out.
    lead, _, trail = content.partition(content.strip() or content)
    return before["role"], behind["role"], _ANY_THOUGHT.search(content) is None, lead, trail


def _sample(kinds: Sequence[Any]) -> list[int]:
    """Numbers of answers: the first and the last of each kind, and others in between."""
    first = {kind: number for number, kind in reversed([*enumerate(kinds)])}
    last = {kind: number for number, kind in enumerate(kinds)}
    return sorted({*first.values(), *last.values(), *range(0, len(kinds), max(1, len(kinds) // _EVENLY))})


def rendered_answer(template: ChatTemplate, quoted: Sequence[Mapping[str, Any]]) -> Turn:
    """What precedes the last turn, the assistant's, when it is generated; and that turn up to its end.

    Raises TemplateRefuses.
    """
    *asked, answer = quoted
    whole = template.render(quoted, opens_turn=False)
    context = template.render(asked, opens_turn=True) if asked else _before_text(template, answer, whole)
    thought = _THOUGHT.search(context)
    if whole.startswith(context):
        turn = template.until_end(whole[len(context) :])
    elif thought and whole.startswith(context[: thought.start()]):
        turn = _behind_thought(template.until_end(whole[thought.start() :]), answer["content"], thought)
    else:
        raise TemplateRefuses(
            "it writes a chat differently once an answer follows, so that no answer has a beginning"
        )
    if not turn and answer["content"].strip():
        raise TemplateRefuses("it leaves out what an assistant says")
    return context, turn


def _before_text(template: ChatTemplate, answer: Mapping[str, Any], whole: str) -> str:
    """What a template writes before plain text, to which it may open with a system turn."""
    # The text itself could stand in what the template writes.
    probed = template.render([{**answer, "content": _PROBE}], opens_turn=False)
    before, found, _ = probed.partition(_PROBE)
    if not found or answer["content"].strip() not in whole[len(before) :]:
        raise TemplateRefuses("it changes what an assistant says")
    return before


def _behind_thought(said: str, content: str, prompted: re.Match[str]) -> str:
    """The answer as it is generated where the prompt holds a thought that the template then leaves out.

    An open thought is closed at once, unless the data set has one to say.
    """
    opens, space = prompted["opens"], prompted["space"]
    closes = f"{opens[0]}/{opens[1:]}"
    if prompted["closes"]:
        return said.rpartition(closes)[2].lstrip() if closes in said else said
    if closes in said:
        return said.lstrip().removeprefix(opens).removeprefix(space)
    own, has_own, _ = content.rpartition(closes)
    own = own.lstrip().removeprefix(opens).removeprefix(space)
    if own.strip():
        return own + closes + said
    return "\n\n".removeprefix(space) + closes + "\n\n" + (said.lstrip("\n") if has_own else said)
