from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neuroweaver.base_models.catalog import BaseModel, resolve
from neuroweaver.trainer.data.rows import Example, Message
from neuroweaver.trainer.data.tokens import TokenCount, count_tokens
from neuroweaver.trainer.data.turns import messages_of
from neuroweaver.trainer.worker.data.chat import encode_chat
from neuroweaver.trainer.worker.models.base import load
from trainer.tiny import tiny_llama

EXAMPLES = (
    Example(
        (
            Message("system", "service"),
            Message("user", "which oil"),
            Message("assistant", "any", is_trained=False),
            Message("user", "surely not"),
            Message("assistant", "an oil change every year"),
            Message("user", "thanks"),
        ),
        1,
    ),
    Example((Message("user", "brakes"), Message("assistant", "replace the pads " * 40)), 2),
    Example((Message("user", "the pads " * 40), Message("assistant", "yes")), 3),
    Example((), 4, "The brakes squeal when the pads are worn."),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load(folder)[1]


@pytest.fixture
def base(folder: Path, tmp_path: Path) -> BaseModel:
    return resolve(str(folder), home=tmp_path)


def count(base: BaseModel, tmp_path: Path, *examples: Example, limit: int = 10_000) -> TokenCount:
    return count_tokens(base, examples, limit, tmp_path)


@pytest.mark.parametrize("limit", [10_000, 64, 8, 1])
def test_a_validation_counts_what_a_jobs_loss_sees(base, tokenizer, tmp_path, limit):
    counted = count(base, tmp_path, *EXAMPLES, limit=limit)
    whole = [encode_chat(tokenizer, messages_of(example)) for example in EXAMPLES]
    cut = [encode_chat(tokenizer, messages_of(example), max_length=limit) for example in EXAMPLES]
    assert counted.total == sum(len(chat.input_ids) for chat in whole)
    assert counted.longest == max(len(chat.input_ids) for chat in whole)
    assert counted.trained == sum(chat.target_tokens for chat in cut)
    assert counted.truncated == sum(chat.is_truncated for chat in cut)
    assert counted.unanswered == sum(not chat.target_tokens for chat in cut)


def test_the_preview_marks_what_is_trained(base, tmp_path):
    preview = count(base, tmp_path, EXAMPLES[0]).preview
    assert [text for text, is_trained in preview if is_trained] == ["an oil change every year<|im_end|>"]
    assert "".join(text for text, _ in preview).startswith("<|im_start|>system\nservice<|im_end|>")
    assert "any" in "".join(text for text, is_trained in preview if not is_trained)


def test_the_preview_of_plain_text_has_the_templates_header_and_end(base, tmp_path):
    assert count(base, tmp_path, EXAMPLES[3]).preview == [
        ("<|im_start|>assistant\n", False),
        (f"{EXAMPLES[3].text}<|im_end|>", True),
    ]


def test_a_rows_first_token_is_predicted_from_nothing_and_never_counts(tmp_path):
    bare = tiny_llama(tmp_path / "bare")
    (bare / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    counted = count(resolve(str(bare), home=tmp_path), tmp_path, EXAMPLES[3])
    assert counted.trained == counted.total - 1
    assert counted.trained == encode_chat(load(bare)[1], messages_of(EXAMPLES[3])).target_tokens
