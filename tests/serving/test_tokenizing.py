"""Tokenizers in processes, with templates that do not end and prompts that are too much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from neuroweaver.serving import prompts
from neuroweaver.serving.requests import ApiError
from neuroweaver.serving.status import Pulse
from neuroweaver.serving.tokenizing import CannotTokenize, Tokenizers

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
SWELL = "{{ 'x' * 10 ** 11 }}"
BY_CONTENT = (
    "{% for message in messages %}{% if message.content == 'loop' %}" + LOOP + "{% endif %}"
    "{% if message.content == 'swell' %}" + SWELL + "{% endif %}{{ message.content }}{% endfor %}"
)


def tokenizer_with(base: Path, folder: Path, template: str) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    return folder


@asynccontextmanager
async def tokenizers(folder: Path) -> AsyncIterator[Tokenizers]:
    made = Tokenizers(Pulse(30, 3600), deadline_s=300)
    try:
        await made.start(folder)
        yield made
    finally:
        await made.close()


def says(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


async def test_prompts_that_take_too_much_cost_themselves_alone(base: Path, tmp_path: Path):
    folder = tokenizer_with(base, tmp_path / "tokenizer", BY_CONTENT)
    fine = AutoTokenizer.from_pretrained(base)("The brakes squeal", add_special_tokens=False)["input_ids"]
    async with tokenizers(folder) as here:
        costly = [asyncio.create_task(here.ids(says(content), 512)) for content in ("loop", "swell", "loop")]
        # Beside one that loops, and by processes in place of those that were ended.
        for _ in range(5):
            assert await here.ids(says("The brakes squeal"), 512) == fine
        for task in costly:
            with pytest.raises(ApiError) as raised:
                await task
            assert (raised.value.status, raised.value.code) == (400, "prompt_too_costly")
        assert await here.ids(says("The brakes squeal"), 512) == fine
        with pytest.raises(ApiError) as raised:
            await here.ids("The brakes squeal. " * 400_000, 512)
        assert (raised.value.status, raised.value.code) == (400, "context_length_exceeded")
        with pytest.raises(ApiError) as raised:
            await here.ids([1, 99_999], 512)
        assert (raised.value.status, raised.value.parameter) == (400, "prompt")


async def test_a_template_that_never_ends_is_found_out_before_anything_is_served(base: Path, tmp_path: Path):
    folder = tokenizer_with(base, tmp_path / "tokenizer", LOOP)
    with pytest.raises(CannotTokenize, match="takes more than 5 s"):
        async with tokenizers(folder):
            pass


class Recording:
    """A tokenizer that notes how long its texts are."""

    def __init__(self, tokenizer):
        self.lengths: list[int] = []
        self._tokenizer = tokenizer

    def __call__(self, text, **options):
        self.lengths.append(len(text))
        return self._tokenizer(text, **options)


def test_a_long_text_is_refused_by_its_beginning_and_a_fitting_one_keeps_its_tokens(base: Path):
    tokenizer = Recording(AutoTokenizer.from_pretrained(base))
    with pytest.raises(ApiError, match="maximum context length is 512 tokens"):
        prompts.token_ids(tokenizer, "The brakes squeal. " * 400_000, 512)
    assert tokenizer.lengths == [prompts._PIECE]
    text = "The brakes squeal. " * 4000
    assert (
        prompts.token_ids(tokenizer, text, 80_000) == AutoTokenizer.from_pretrained(base)(text)["input_ids"]
    )
