from __future__ import annotations

import itertools
from typing import Any

import pytest

from base_models.families import CHATML, NAMED, byte_level
from neuroweaver.trainer.data.encoding import encode
from neuroweaver.trainer.data.rows import Example, Message
from neuroweaver.trainer.data.tokens import MAX_SHAPES, MAX_TOLD, count_tokens, try_shapes
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
    assert counted.sequences == sum(map(len, rows)) == (7 if family == "Qwen 3" else 5)


def test_the_preview_marks_what_is_trained(tokenizer):
    preview = count_tokens(tokenizer, EXAMPLES, 64).preview
    assert [text for text, is_trained in preview if is_trained] == ["an oil change every year<|im_end|>"]
    assert "".join(text for text, _ in preview).startswith("<|im_start|>system\nservice<|im_end|>")
    assert "any" in "".join(text for text, is_trained in preview if not is_trained)


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
    assert counted.refusals[0] == (2, "Conversation roles must alternate")
    assert len(counted.refusals) == MAX_TOLD


def test_one_row_of_each_order_of_roles_is_tried_and_stands_for_the_others():
    rows = [of_turns(line, *["user", "assistant"] * (1 + line % 2)) for line in range(10)]
    tried = try_shapes(NAMED["Qwen 3"].tokenizer(), rows)
    assert (tried.sequences, tried.refused) == (5 * 1 + 5 * 2, 0)
    refused = try_shapes(
        NAMED["Gemma"].tokenizer(),
        [*rows, *(of_turns(line, "user", "user", "assistant") for line in (11, 12))],
    )
    assert (refused.refused, refused.refusals) == (1, [(11, "Conversation roles must alternate")])


def test_no_more_than_some_orders_of_roles_are_tried(tokenizer):
    asked = itertools.islice(itertools.product(("user", "system"), repeat=8), MAX_SHAPES + 10)
    rows = [of_turns(line, *roles, "assistant") for line, roles in enumerate(asked)]
    assert try_shapes(tokenizer, rows).sequences == MAX_SHAPES
