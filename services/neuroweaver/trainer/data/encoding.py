"""Chats as token ids, with labels on the assistant's turns alone, for jobs and whoever counts for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from neuroweaver.base_models.chat_template import ChatTemplate, chat_template
from neuroweaver.trainer.data.answers import Turn, refuse_many, runs
from neuroweaver.trainer.data.turns import Messages

# What the cross-entropy of torch skips.
IGNORED: Final = -100

Segment = tuple[str, bool]
"""A stretch of rendered text, and whether the loss is computed on it."""


@dataclass
class EncodedChat:
    """A chat up to its last assistant token; labels repeat the ids of assistant tokens, IGNORED elsewhere.

    segments: the same as text, whatever was cut. segment_ends: how many of the ids precede each one's end.
    """

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list, repr=False, compare=False)
    segment_ends: list[int] = field(default_factory=list, repr=False, compare=False)
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

    def kept_segments(self, tokenizer: Any) -> list[Segment]:
        """The segments of the ids that are left; of one that is cut, what the tokenizer reads in its ids."""
        kept: list[Segment] = []
        begin = 0
        for (text, is_trained), end in zip(self.segments, self.segment_ends, strict=True):
            if end > len(self.input_ids):
                before, whole = (_read(tokenizer, ids) for ids in (self.input_ids[:begin], self.input_ids))
                return [*kept, (whole[len(before) :], is_trained)] if begin < len(self.input_ids) else kept
            kept.append((text, is_trained))
            begin = end
        return kept

    def _add_turn(
        self, template: ChatTemplate, turn: Turn, context_ids: list[int], answer_ids: list[int]
    ) -> None:
        self._add(template.unquoted(turn[0]), context_ids, is_trained=False)
        self._add(template.unquoted(turn[1]), answer_ids, is_trained=True)

    def _add(self, text: str, ids: list[int], *, is_trained: bool) -> None:
        self.input_ids += ids
        self.labels += ids if is_trained else [IGNORED] * len(ids)
        self.segments.append((text, is_trained))
        self.segment_ends.append(len(self.input_ids))


def _read(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def encode(tokenizer: Any, messages: Messages) -> list[EncodedChat]:
    """The chat with labels on every assistant turn to be trained, its end-of-turn token included.

    Each turn stands behind the very ids that it has as a prompt when the turn is generated. Most templates
    only ever add to a chat, and give one sequence. Where a template rewrites what came before (as Qwen 3's
    leaves out earlier thoughts), a new sequence begins with each turn whose context is another. A sequence
    ends as generation does, also where the template writes no end.

    Of a chat with very many answers, some of each kind are looked at in this way; if the template only adds
    to these, it is taken to do so with the others. Raises TemplateRefuses.
    """
    template = chat_template(tokenizer)
    quoted = template.quoted(messages)
    chats = [
        chat
        for run in runs(template, quoted)
        for chat in _encoded_in_one(template, run) or _encoded_by_turn(template, run)
    ]
    for chat in chats:
        if template.end is not None and chat.labels[-1:] != [template.end]:
            chat._add(str(tokenizer.convert_ids_to_tokens(template.end)), [template.end], is_trained=True)
    return chats


def _encoded_in_one(template: ChatTemplate, run: Sequence[Turn]) -> list[EncodedChat]:
    """The run piece by piece, in time that grows with its length alone.

    Empty where that gives other ids than the whole text: then some token reaches from one piece into another.
    """
    chat, text = EncodedChat(), ""
    for context, answer in run:
        context_ids = template.token_ids(context, after=text)
        text += context
        chat._add_turn(template, (context, answer), context_ids, template.token_ids(answer, after=text))
        text += answer
    return [chat] if chat.input_ids == template.token_ids(text) else []


def _encoded_by_turn(template: ChatTemplate, run: Sequence[Turn]) -> list[EncodedChat]:
    """The run with the ids of each prompt, in a new sequence where they differ from the ids so far."""
    refuse_many(run)
    chats: list[EncodedChat] = []
    text, begin = "", 0
    for context, answer in run:
        text += context
        ids = template.token_ids(text)
        if not chats or ids[: len(chats[-1].input_ids)] != chats[-1].input_ids:
            chats.append(EncodedChat())
            begin = 0
        chats[-1]._add_turn(
            template,
            (text[begin:], answer),
            ids[len(chats[-1].input_ids) :],
            template.answer_ids(answer, text, ids),
        )
        text += answer
        begin = len(text)
    return chats
