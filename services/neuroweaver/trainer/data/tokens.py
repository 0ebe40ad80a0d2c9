"""Counts the tokens of a data set with the base model's tokenizer and chat template, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from neuroweaver.base_models.catalog import BaseModel
from neuroweaver.mesh.wire.errors import FailedPrecondition, InvalidArgument
from neuroweaver.trainer.data.rows import Example
from neuroweaver.trainer.data.turns import Messages, Segment, messages_of, segments


@dataclass
class TokenCount:
    """total, longest: of whole rows. trained: what the loss sees of them, cut at the limit.

    truncated: rows that are cut; unanswered: rows of which the loss sees nothing. preview: the first row.
    """

    total: int = 0
    trained: int = 0
    longest: int = 0
    truncated: int = 0
    unanswered: int = 0
    preview: list[Segment] = field(default_factory=list)


def count_tokens(base: BaseModel, examples: Iterable[Example], max_seq_length: int, home: Path) -> TokenCount:
    """Totals over the examples, and the first of them as the model sees it.

    Raises FailedPrecondition while the model's tokenizer is not on this machine's disk.
    """
    renderer = _Renderer(_folder(base, home))
    count = TokenCount()
    for example in examples:
        row = renderer.segments(example)
        lengths = [(renderer.length(text), is_trained) for text, is_trained in row]
        whole = sum(length for length, _ in lengths)
        trained = _trained(lengths, max_seq_length)
        count.total += whole
        count.trained += trained
        count.longest = max(count.longest, whole)
        count.truncated += whole > max_seq_length
        count.unanswered += not trained
        count.preview = count.preview or row
    return count


def _trained(lengths: Iterable[tuple[int, bool]], limit: int) -> int:
    """Tokens that the loss sees; the first of a row is predicted from nothing and never counts."""
    end = trained = 0
    for length, is_trained in lengths:
        start, end = end, end + length
        if is_trained:
            trained += max(0, min(end, limit) - max(start, 1))
    return trained


def _folder(base: BaseModel, home: Path) -> Path:
    for folder in (Path(base.location), home / "models" / base.name):
        if (folder / "tokenizer.json").is_file():
            return folder
    raise FailedPrecondition(
        "BASE_MODEL_NOT_PREPARED",
        f"the tokenizer of {base.name} is not on this server yet; leave base_model empty for a check without "
        "token counts, or start a job with it first",
    )


class _Renderer:
    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        file = folder / "chat_template.jinja"
        template = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
        if not isinstance(template, str):
            raise InvalidArgument("base_model", "has no chat template")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = environment.from_string(template)
        self._special = {name: _text(settings.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
        self._end = self._end_text()

    def length(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def segments(self, example: Example) -> list[Segment]:
        """The example as a job renders it."""
        return list(segments(messages_of(example), self._render, self._until_end))

    def _end_text(self) -> str:
        """The token that the template writes behind an answer, as base_models.chat_template finds it."""
        chat = [
            {"role": "user", "content": "First question"},
            {"role": "assistant", "content": "First answer"},
        ]
        behind = self._render(chat, opens_turn=False).rpartition("First answer")[2]
        tokens = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        written = [token for token in tokens if token.strip() and token in behind]
        return min(written, key=lambda token: (behind.index(token), -len(token)), default="")

    def _until_end(self, turn: str) -> str:
        before, end, _ = turn.partition(self._end) if self._end else (turn, "", "")
        return before + end

    def _render(self, messages: Messages, opens_turn: bool) -> str:
        return self._template.render(messages=messages, add_generation_prompt=opens_turn, **self._special)


def _text(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token or ""
