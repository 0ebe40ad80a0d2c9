"""What a base model's chat template writes: chats as token ids, and the tokens that end an answer.

Fine-tuning, generation, policy optimisation and serving all encode chats here, so that a model is served what
it was trained on and ends where it was taught to. The tokenizer is one of transformers, which nothing here
imports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any, Final

# Stands inside a control token that a content only quotes. Unicode keeps it out of all text.
_QUOTE: Final = "\ufdd0"
# Marks of a thought, which an answer may hold and which close no turn.
_THOUGHT: Final = re.compile(r"[<\[]/?think(ing)?[>\]]", re.IGNORECASE)
_SYSTEM, _QUESTION, _ANSWER, _NEXT = "One instruction", "First question", "First answer", "Second question"


class TemplateRefuses(Exception):
    """The template does not take a chat; the text says why, by the template itself where it does."""


class ChatTemplate:
    """The template of one tokenizer.

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
        added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special.update(tokenizer.all_special_tokens)
        self._added = _any_of(added)
        turns, behind_answer = self._probed()
        instructed = self._written(
            [{"role": "system", "content": _SYSTEM}, *_asked(_QUESTION)], opens_turn=True
        )
        self._has_system_role = _SYSTEM in instructed
        self.end_text = next(
            (match[0] for text in behind_answer if self._added and (match := self._added.search(text))), None
        )
        self.end: int | None = added.get(self.end_text or "", tokenizer.eos_token_id)
        marks = set(self._added.findall(turns + instructed)) if self._added else set()
        control = {token for token in special | marks if len(token) > 1 and not _THOUGHT.fullmatch(token)}
        self._control = _any_of(control)
        self._quotations = _any_of({_quote(token) for token in control})
        self._control_ids = set(tokenizer.convert_tokens_to_ids(sorted(control))) - {tokenizer.unk_token_id}

    def quoted(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages as `render` takes them, in roles that the template has.

        Each control token of a content has a mark in it, by which `token_ids` knows it.
        """
        turns = messages if self._has_system_role else _without_system_role(messages)
        return [{**message, "content": self._quoted(message["content"])} for message in turns]

    def render(self, quoted: Sequence[Mapping[str, Any]], opens_turn: bool) -> str:
        """The text of a quoted chat; with `opens_turn`, the opening of an assistant's turn behind it.

        Raises TemplateRefuses.
        """
        chat = [{"role": message["role"], "content": message["content"]} for message in quoted]
        try:
            text = self._tokenizer.apply_chat_template(chat, add_generation_prompt=opens_turn, tokenize=False)
        except MemoryError:
            raise
        except Exception as error:
            # A template refuses by Jinja's errors or any other.
            raise TemplateRefuses(str(error) or type(error).__name__) from error
        return str(text)

    def unquoted(self, rendered: str) -> str:
        """The rendered text without marks of quotations."""
        return rendered.replace(_QUOTE, "")

    def until_end(self, turn: str) -> str:
        """A rendered answer up to its end: what a template writes behind that is never generated."""
        end = turn.find(self.end_text) if self.end_text else -1
        return turn if end < 0 or not self.end_text else turn[: end + len(self.end_text)]

    def answer_ids(self, answer: str, context: str, context_ids: Sequence[int]) -> list[int]:
        """Token ids of a rendered answer behind its context, which keeps the ids that it has as a prompt.

        They are those of the whole text, unless a token of it reaches over the answer's beginning.
        """
        whole = self.token_ids(context + answer)
        if whole[: len(context_ids)] == context_ids:
            return whole[len(context_ids) :]
        return self.token_ids(answer, after=context)

    def token_ids(self, rendered: str, *, after: str = "") -> list[int]:
        """Token ids of rendered text, or of a part of it that stands behind the text `after`."""
        # The template has written the special tokens already.
        if self._quotations is None or _QUOTE not in rendered:
            return self._encoded(rendered, after)
        ids: list[int] = []
        position = 0
        for match in self._quotations.finditer(rendered):
            between, quoted = rendered[position : match.start()], match[0].replace(_QUOTE, "", 1)
            ids += self._encoded(between, after)
            ids += self._plain(quoted, between or after)
            # Not the whole token: as the text before, it would be a control token again.
            after, position = quoted[-1], match.end()
        return ids + self._encoded(rendered[position:], after)

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
            return self.render(chat, opens_turn)
        except TemplateRefuses:
            return ""

    def _quoted(self, content: str) -> str:
        return self._control.sub(lambda match: _quote(match[0]), content) if self._control else content

    def _encoded(self, text: str, after: str, **options: Any) -> list[int]:
        """Ids of `text` behind `after`: SentencePiece would put a space before a text of its own."""
        if not text:
            return []
        end = self._added_at_end(after) or after[-1:]
        for anchor in dict.fromkeys((end, "\n" if after else "", "")):
            before = self._tokenizer(anchor, add_special_tokens=False)["input_ids"] if anchor else []
            ids = list(self._tokenizer(anchor + text, add_special_tokens=False, **options)["input_ids"])
            if ids[: len(before)] == before:
                return ids[len(before) :]
        raise AssertionError("behind nothing, the ids are the text's own")

    def _added_at_end(self, text: str) -> str:
        tokens = self._added.findall(text[-100:]) if self._added else []
        return tokens[-1] if tokens and text.endswith(tokens[-1]) else ""

    def _plain(self, token: str, after: str) -> list[int]:
        """Ids of a control token's letters."""
        ids = self._encoded(token, after, split_special_tokens=True)
        if self._control_ids.isdisjoint(ids):
            return ids
        return self._encoded(token[0], after) + self._encoded(token[1:], token[0])


def chat_template(tokenizer: Any) -> ChatTemplate:
    """The template that the tokenizer has now; probed once."""
    return _chat_template(tokenizer, repr(tokenizer.chat_template))


@lru_cache(maxsize=4)
def _chat_template(tokenizer: Any, template: str) -> ChatTemplate:
    del template  # tells apart what a tokenizer had before
    return ChatTemplate(tokenizer)


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


def _quote(token: str) -> str:
    return token[0] + _QUOTE + token[1:]


def _any_of(tokens: Any) -> re.Pattern[str] | None:
    """Matches the longest; None without any. Whitespace may be a token, but tells nothing of turns."""
    longest_first = sorted(filter(str.strip, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
