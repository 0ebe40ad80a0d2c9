from __future__ import annotations

from typing import Any

import pytest

from base_models.families import CHATML, NAMED, byte_level
from neuroweaver.trainer.data.encoding import IGNORED, encode
from neuroweaver.trainer.data.rows import Example, Message
from neuroweaver.trainer.data.tokens import MAX_TOLD, count_tokens
from neuroweaver.trainer.data.turns import messages_of

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
def tokenizer() -> Any:
    return byte_level(CHATML)


def of_turns(line: int, *roles: str) -> Example:
    return Example(tuple(Message(role, f"{role} of row {line}") for role in roles), line)


@pytest.mark.parametrize("family", ["ChatML", "Qwen 3"])
@pytest.mark.parametrize("limit", [10_000, 64, 8, 1])
def test_a_validation_counts_what_a_jobs_loss_sees(family, limit):
    tokenizer = NAMED[family].tokenizer()
    examples = [*EXAMPLES, of_turns(5, *["user", "assistant"] * 3)]
    counted = count_tokens(tokenizer, examples, limit)
    rows = [encode(tokenizer, messages_of(example)) for example in examples]
    cut = [[chat.cut(limit) for chat in row] for row in rows]
    assert counted.total == sum(len(chat.input_ids) for row in rows for chat in row)
    assert counted.longest == max(len(chat.input_ids) for row in rows for chat in row)
    assert counted.trained == sum(chat.target_tokens for row in cut for chat in row)
    assert counted.truncated == sum(any(chat.is_truncated for chat in row) for row in cut)
    assert counted.unanswered == sum(not any(chat.target_tokens for chat in row) for row in cut)
    assert counted.sequences == sum(chat.target_tokens > 0 for row in cut for chat in row)
    assert limit < 10_000 or counted.sequences == (7 if family == "Qwen 3" else 5)


def test_the_preview_marks_what_is_trained(tokenizer):
    preview = count_tokens(tokenizer, EXAMPLES, 1000).preview
    assert [text for text, is_trained in preview if is_trained] == ["an oil change every year<|im_end|>"]
    assert "".join(text for text, _ in preview).startswith("<|im_start|>system\nservice<|im_end|>")
    assert "any" in "".join(text for text, is_trained in preview if not is_trained)


@pytest.mark.parametrize("family", ["ChatML", "Gemma", "Mistral"])
def test_the_preview_shows_what_is_left_of_a_cut_row(family):
    tokenizer = NAMED[family].tokenizer()
    row = Example((Message("user", "which oil"), Message("assistant", "the first oil, then the pads")), 1)
    (chat,) = encode(tokenizer, messages_of(row))
    whole = count_tokens(tokenizer, [row], len(chat.input_ids)).preview
    assert "".join(text for text, _ in whole) == "".join(text for text, _ in chat.segments)
    first = next(place for place, label in enumerate(chat.labels) if label != IGNORED)
    for limit in range(first + 1, len(chat.input_ids)):
        context, answer = count_tokens(tokenizer, [row], limit).preview
        assert context == chat.segments[0]
        assert answer == (tokenizer.decode(chat.input_ids[:limit])[-len(answer[0]) :], True)
        assert chat.segments[1][0].startswith(answer[0].rstrip("\ufffd"))
    assert count_tokens(tokenizer, [row], first).preview == []


def test_the_preview_is_of_the_first_row_of_which_anything_is_learnt(tokenizer):
    assert count_tokens(tokenizer, EXAMPLES[2:], 64).preview == [
        ("<|im_start|>assistant\n", False),
        (f"{EXAMPLES[3].text}<|im_end|>", True),
    ]


def test_the_preview_of_plain_text_has_the_templates_header_and_end(tokenizer):
    assert count_tokens(tokenizer, EXAMPLES[3:], 64).preview == [
        ("<|im_start|>assistant\n", False),
        (f"{EXAMPLES[3].text}<|im_end|>", True),
    ]


def test_a_rows_first_token_is_predicted_from_nothing_and_never_counts():
    counted = count_tokens(
        byte_level("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"), EXAMPLES[3:], 10_000
    )
    assert counted.trained == counted.total - 1


def test_rows_that_the_template_refuses_are_told_by_their_lines_and_count_nowhere_else():
    rows = [
        of_turns(1, "user", "assistant"),
        *(of_turns(line, "user", "user", "assistant") for line in range(2, 200)),
    ]
    counted = count_tokens(NAMED["Gemma"].tokenizer(), rows, 64)
    assert (counted.refused, counted.sequences, counted.unanswered) == (198, 1, 0)
    assert counted.refusals[0] == (2, "the chat template refuses it: Conversation roles must alternate")
    assert len(counted.refusals) == MAX_TOLD
