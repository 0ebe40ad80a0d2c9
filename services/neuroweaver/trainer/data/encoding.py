"""Chats as token ids, with labels on the assistant's turns alone, for jobs and whoever counts for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from neuroweaver.base_models.chat_template import ChatTemplate, chat_template
from neuroweaver.base_models.rendering import TemplateRefuses
from neuroweaver.trainer.data.turns import Messages

# What the cross-entropy of torch skips.
IGNORED: Final = -100
# What no text holds: noncharacters of Unicode.
_PROBE: Final = "\ufdd1\ufdd2"
# A thought that the opening of an answer begins, as templates of reasoning models write it, or has behind it.
_THOUGHT: Final = re.compile(
    r"(?P<opens>[<\[]think(?:ing)?[>\]])(?P<space>\s*)(?P<closes>[<\[]/think(?:ing)?[>\]]\s*)?$",
    re.IGNORECASE,
)

Turn = tuple[str, str]
"""The rendered context of an answer, and the answer."""

Segment = tuple[str, bool]
"""A stretch of rendered text, and whether the loss is computed on it."""


@dataclass
class EncodedChat:
    """A chat up to its last assistant token; labels repeat the ids of assistant tokens, IGNORED elsewhere.

    segments: the same as text.
    """

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list, repr=False, compare=False)
    is_truncated: bool = False

    @property
    def target_tokens(self) -> int:
        """How many tokens the loss sees; the first position is predicted from nothing and never counts."""
        return sum(label != IGNORED for label in self.labels[1:])

    def cut(self, max_length: int) -> EncodedChat:
        """Longer than `max_length`, the start is kept."""
        if len(self.input_ids) <= max_length:
            return self
        return replace(
            self,
            input_ids=self.input_ids[:max_length],
            labels=self.labels[:max_length],
            is_truncated=True,
        )

    def _add_turn(
        self, template: ChatTemplate, turn: Turn, context_ids: list[int], answer_ids: list[int]
    ) -> None:
        self._add(template.unquoted(turn[0]), context_ids, is_trained=False)
        self._add(template.unquoted(turn[1]), answer_ids, is_trained=True)

    def _add(self, text: str, ids: list[int], *, is_trained: bool) -> None:
        self.input_ids += ids
        self.labels += ids if is_trained else [IGNORED] * len(ids)
        self.segments.append((text, is_trained))


def encode(tokenizer: Any, messages: Messages) -> list[EncodedChat]:
    """The chat with labels on every assistant turn to be trained, its end-of-turn token included.

    Each turn stands behind the very ids that it has as a prompt when the turn is generated. Most templates
    only ever add to a chat, and give one sequence. Where a template rewrites what came before (as Qwen 3's
    leaves out earlier thoughts), a new sequence begins with each turn whose context is another. A sequence
    ends as generation does, also where the template writes no end. Raises TemplateRefuses.
    """
    template = chat_template(tokenizer)
    quoted = template.quoted(messages)
    chats = [
        chat
        for run in _runs(template, quoted)
        for chat in _encoded_in_one(template, run) or _encoded_by_turn(template, run)
    ]
    for chat in chats:
        if template.end is not None and chat.labels[-1:] != [template.end]:
            chat._add(str(tokenizer.convert_ids_to_tokens(template.end)), [template.end], is_trained=True)
    return chats


def _runs(template: ChatTemplate, quoted: Sequence[Mapping[str, Any]]) -> list[list[Turn]]:
    """The turns to be trained, in runs of which each turn's context continues the text of the one before."""
    runs: list[list[Turn]] = []
    text = ""
    for place, message in enumerate(quoted):
        if message["role"] == "assistant" and message.get("is_trained", True):
            context, answer = rendered_answer(template, quoted[: place + 1])
            if not runs or not context.startswith(text):
                runs.append([])
            runs[-1].append((context, answer))
            text = context + answer
    return runs


def _encoded_in_one(template: ChatTemplate, run: Sequence[Turn]) -> list[EncodedChat]:
    """The run piece by piece, in time that grows with its length alone.

    Empty where that gives other ids than the whole text: then some token reaches from one piece into another.
    """
    chat, before = EncodedChat(), ""
    for context, answer in run:
        chat._add_turn(
            template,
            (context.removeprefix(before), answer),
            template.token_ids(context.removeprefix(before), after=before),
            template.token_ids(answer, after=context),
        )
        before = context + answer
    return [chat] if chat.input_ids == template.token_ids(before) else []


def _encoded_by_turn(template: ChatTemplate, run: Sequence[Turn]) -> list[EncodedChat]:
    """The run with the ids of each prompt, in a new sequence where they differ from the ids so far."""
    chats: list[EncodedChat] = []
    before = ""
    for context, answer in run:
        ids = template.token_ids(context)
        if not chats or ids[: len(chats[-1].input_ids)] != chats[-1].input_ids:
            chats.append(EncodedChat())
            before = ""
        chats[-1]._add_turn(
            template,
            (context.removeprefix(before), answer),
            ids[len(chats[-1].input_ids) :],
            template.answer_ids(answer, context, ids),
        )
        before = context + answer
    return chats


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
