"""What a base model's chat template writes: chats as token ids, and the tokens that end an answer.

Fine-tuning, generation, policy optimisation and serving all encode chats here, so that a model is served what
it was trained on and ends where it was taught to. The tokenizer is one of transformers, which nothing here
imports.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any, Final

from neuroweaver.base_models import control_tokens, rendering
from neuroweaver.base_models.control_tokens import QUOTE, ControlTokens
from neuroweaver.base_models.rendering import TemplateRefuses, words_of

# Marks of a thought, which an answer may hold and which close no turn.
_THOUGHT: Final = re.compile(r"[<\[]/?think(?:ing)?[>\]]", re.IGNORECASE)
_SYSTEM, _QUESTION, _ANSWER, _NEXT = "One instruction", "First question", "First answer", "Second question"


class ChatTemplate:
    """The template of one tokenizer. Raises TemplateRefuses where that is of no use.

    A content is plain text whatever it looks like: of the control tokens (special ones, and those by which
    the template parts turns), only those that the template itself writes are encoded as such. So nobody
    closes their turn by what they say. A template whose marks are no tokens (`[INST]` in Llama 2,
    `### Instruction`) cannot be protected in this way.

    A template without a system role, which refuses such a turn or leaves it out, gets the system's text
    before that of the first user's turn.

    end: the token that the template writes behind an answer, else the end of sequence; None without either.
    end_text: that token as the template writes it; None where it writes none.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        if not tokenizer.is_fast:
            raise TemplateRefuses(
                "its tokenizer has no tokenizer.json, nor is of a kind that can be given one"
            )
        backend = tokenizer.backend_tokenizer
        added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
        special = {name for name, token in added.items() if token.special}
        special.update(added.keys() & tokenizer.all_special_tokens)
        # Whitespace may be a token, but tells nothing of turns.
        visible = control_tokens.one_of({name: token for name, token in added.items() if name.strip()})
        turns, behind_answer = self._probed()
        instructed = self._written(
            [{"role": "system", "content": _SYSTEM}, *_asked(_QUESTION)], opens_turn=True
        )
        self._has_system_role = _SYSTEM in instructed
        self.end_text = next(
            (match[0] for text in behind_answer if visible and (match := visible.search(text))), None
        )
        self._end = control_tokens.one_of({self.end_text: added[self.end_text]}) if self.end_text else None
        self.end: int | None = backend.token_to_id(self.end_text) if self.end_text else tokenizer.eos_token_id
        marks = {match[0] for match in visible.finditer(turns + instructed)} if visible else set()
        # A letter that is a token, as fine-tuners add them, stands in the words of any template.
        marks = {token for token in marks if len(token) > 1 or token == self.end_text}
        control = {token for token in special | marks if not _THOUGHT.fullmatch(token)}
        parting = {*marks, tokenizer.bos_token, tokenizer.eos_token} & control
        self._control = ControlTokens(
            backend, added, control, parting=parting, unknown=tokenizer.unk_token_id
        )
        # Many chats have the same roles.
        self._own_names = lru_cache(maxsize=64)(self._names_of_harmless)

    def quoted(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages as `render` takes them, in roles that the template has.

        What would be a control token in a content has a mark in it, by which `token_ids` knows it.
        """
        turns = messages if self._has_system_role else _without_system_role(messages)
        return [{**message, "content": self._control.quoted(message["content"])} for message in turns]

    def render(self, quoted: Sequence[Mapping[str, Any]], opens_turn: bool) -> str:
        """The text of a quoted chat; with `opens_turn`, the opening of an assistant's turn behind it.

        Raises TemplateRefuses, also where the template makes control tokens of what a content says.
        """
        text = self._rendered(quoted, opens_turn)
        if any(self._control.may_be_built_of(message["content"]) for message in quoted):
            turns = tuple((message["role"], _harmless(message["content"])) for message in quoted)
            found, own = self._control.names_in(text), self._own_names(turns, opens_turn)
            if found != own:
                differing = [*(Counter(found) - Counter(own)), *(Counter(own) - Counter(found)), *found]
                raise TemplateRefuses(
                    f"it alters what a turn says, which makes or unmakes the control token {differing[0]!r}"
                )
        return text

    def _names_of_harmless(self, turns: tuple[tuple[str, str], ...], opens_turn: bool) -> list[str]:
        chat = [{"role": role, "content": content} for role, content in turns]
        return self._control.names_in(self._rendered(chat, opens_turn))

    def _rendered(self, quoted: Sequence[Mapping[str, Any]], opens_turn: bool) -> str:
        chat = [{"role": message["role"], "content": message["content"]} for message in quoted]
        try:
            template = self._tokenizer.get_chat_template()
        except ValueError as error:  # none is the default
            raise TemplateRefuses(words_of(error)) from error
        names = self._tokenizer.special_tokens_map
        return rendering.render(template, chat, names, add_generation_prompt=opens_turn)

    def unquoted(self, rendered: str) -> str:
        """The rendered text without marks of quotations."""
        return rendered.replace(QUOTE, "")

    def until_end(self, turn: str) -> str:
        """A rendered answer up to its end: what a template writes behind that is never generated."""
        end = self._end.search(turn) if self._end else None
        return turn[: end.end()] if end else turn

    def answer_ids(self, answer: str, context: str, context_ids: Sequence[int]) -> list[int]:
        """Token ids of a rendered answer behind its context, which keeps the ids that it has as a prompt.

        They are those of the whole text, unless a token of it reaches over the answer's beginning.
        """
        whole = self.token_ids(context + answer)
        if whole[: len(context_ids)] == context_ids:
            return whole[len(context_ids) :]
        return self.token_ids(answer, after=context)

    def token_ids(self, rendered: str, *, after: str = "") -> list[int]:
        """Token ids of rendered text, or of a part of it that stands behind the text `after`.

        Raises TemplateRefuses.
        """
        return self._control.token_ids(rendered, after=after)

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of the chat and of the opening of the answer. Raises TemplateRefuses."""
        return self.token_ids(self.render(self.quoted(messages), opens_turn=True))

    def ends(self, shipped: int | Sequence[int] | None) -> frozenset[int]:
        """Every id that ends an answer: the template's, the tokenizer's, and those shipped for generation."""
        more = shipped if isinstance(shipped, Sequence) else [shipped]
        return frozenset({self.end, self._tokenizer.eos_token_id, *more} - {None})

    def _probed(self) -> tuple[str, list[str]]:
        """What the template writes around turns, and behind an answer: the last, and one before others."""
        chat = [*_asked(_QUESTION), {"role": "assistant", "content": _ANSWER}, *_asked(_NEXT)]
        turns, last = (self._written(chat[:count]) for count in (3, 2))
        return turns, [last.rpartition(_ANSWER)[2], turns.rpartition(_ANSWER)[2].partition(_NEXT)[0]]

    def _written(self, chat: Sequence[Mapping[str, str]], *, opens_turn: bool = False) -> str:
        """Empty if there is no template or it takes no such chat."""
        if not self._tokenizer.chat_template:
            return ""
        try:
            return self._rendered(chat, opens_turn)
        except TemplateRefuses:
            return ""


def chat_template(tokenizer: Any) -> ChatTemplate:
    """The template that the tokenizer has now; probed once."""
    return _chat_template(tokenizer, repr(tokenizer.chat_template))


@lru_cache(maxsize=4)
def _chat_template(tokenizer: Any, template: str) -> ChatTemplate:
    del template  # tells apart what a tokenizer had before
    return ChatTemplate(tokenizer)


def _harmless(content: str) -> str:
    """A content of no letter, with the thoughts of the other: a template may tell turns apart by these."""
    if not content.strip():
        return ""
    thoughts = [*(match[0] for match in _THOUGHT.finditer(content)), ""]
    said = (QUOTE if part.strip() else "" for part in _THOUGHT.split(content))
    return "".join(part for pair in zip(said, thoughts, strict=True) for part in pair)


def _asked(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def _without_system_role(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The chat with the text of the system turns that begin it before that of the first user's turn."""
    instructions = list(takewhile(lambda turn: turn["role"] == "system", messages))
    turns = list(messages[len(instructions) :])
    first = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), None)
    if not instructions:
        return turns
    if first is None:
        return [*({**turn, "role": "user"} for turn in instructions), *turns]
    content = "\n\n".join(turn["content"] for turn in (*instructions, turns[first]))
    return [*turns[:first], {**turns[first], "content": content}, *turns[first + 1 :]]
