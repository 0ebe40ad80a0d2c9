"""Counts the tokens of a data set with the base model's tokenizer and chat template, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from neuroweaver.base_models.catalog import BaseModel
from neuroweaver.mesh.wire.errors import FailedPrecondition, InvalidArgument
from neuroweaver.trainer.data.rows import Example

Segment = tuple[str, bool]
"""A stretch of rendered text, and whether the loss is computed on it."""


@dataclass
class TokenCount:
    total: int = 0
    trained: int = 0
    longest: int = 0
    truncated: int = 0
    preview: list[Segment] = field(default_factory=list)


def count_tokens(base: BaseModel, examples: Iterable[Example], max_seq_length: int, home: Path) -> TokenCount:
    """Totals over the examples, and the first of them as the model sees it.

    Raises FailedPrecondition while the model's tokenizer is not on this machine's disk.
    """
    renderer = _Renderer(_folder(base, home))
    count = TokenCount()
    for example in examples:
        segments = renderer.segments(example)
        lengths = [(renderer.length(text), is_trained) for text, is_trained in segments]
        whole = sum(length for length, _ in lengths)
        count.total += whole
        count.trained += sum(length for length, is_trained in lengths if is_trained)
        count.longest = max(count.longest, whole)
        count.truncated += whole > max_seq_length
        count.preview = count.preview or list(segments)
    return count


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

    def length(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def segments(self, example: Example) -> Sequence[Segment]:
        """Assistant turns are trained on, everything else is not; a plain text is trained on whole."""
        if example.text:
            return [(example.text, True)]
        messages = [{"role": each.role, "content": each.content} for each in example.messages]
        segments: list[Segment] = []
        rendered = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:index], add_generation_prompt=True)
            after = self._render(messages[: index + 1], add_generation_prompt=False)
            segments += [(before[len(rendered) :], False), (after[len(before) :], True)]
            rendered = after
        return segments

    def _render(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
        return self._template.render(
            messages=messages, add_generation_prompt=add_generation_prompt, **self._special
        )


def _text(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token or ""
