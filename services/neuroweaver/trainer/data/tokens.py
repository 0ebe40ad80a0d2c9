"""What a job's model would read of a data set: tokens, a preview, and the rows that its template refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from neuroweaver.base_models.rendering import TemplateRefuses
from neuroweaver.mesh.wire.threads import check_wanted
from neuroweaver.trainer.data.encoding import EncodedChat, Segment, encode
from neuroweaver.trainer.data.rows import Example
from neuroweaver.trainer.data.turns import messages_of

# Refusals that are told one by one, and how much of a template's words.
MAX_TOLD: Final = 100
MAX_REASON: Final = 500
# Of a row in the preview, in characters: a template can write any number.
MAX_PREVIEW: Final = 1 << 20
# Different orders of roles that are tried; chats of many lengths have as many.
MAX_SHAPES: Final = 200


@dataclass
class TokenCount:
    """total, longest: of whole rows. trained: what the loss sees of them, cut at the limit.

    truncated: rows that are cut; unanswered: rows of which the loss sees nothing. preview: the first row.
    sequences: what the model passes over, one or more a row.
    refused: rows that the chat template refuses; refusals: line and reason of the first of them.
    """

    total: int = 0
    trained: int = 0
    longest: int = 0
    truncated: int = 0
    unanswered: int = 0
    sequences: int = 0
    preview: list[Segment] = field(default_factory=list)
    refused: int = 0
    refusals: list[tuple[int, str]] = field(default_factory=list)


def count_tokens(tokenizer: Any, examples: Iterable[Example], limit: int) -> TokenCount:
    """Totals over the examples as a job encodes them, and the first as the model sees it."""
    count = TokenCount()
    for example in examples:
        chats = _encoded(tokenizer, example, count)
        lengths = [len(chat.input_ids) for chat in chats]
        trained = sum(chat.cut(limit).target_tokens for chat in chats)
        count.total += sum(lengths)
        count.trained += trained
        count.longest = max(count.longest, *lengths, 0)
        count.truncated += any(length > limit for length in lengths)
        count.unanswered += bool(chats) and not trained
        count.sequences += len(chats)
        count.preview = count.preview or _preview(chats)
    return count


def try_shapes(
    tokenizer: Any, examples: Iterable[Example], check: Callable[[], None] = check_wanted
) -> TokenCount:
    """`sequences` and refusals, by one row of each order of roles: by these a template decides.

    check: called before each, since a template may be slow; what it raises ends the trial.
    """
    rows: Counter[Any] = Counter()
    first: dict[Any, Example] = {}
    for example in examples:
        shape = tuple((message.role, message.is_trained) for message in example.messages)
        if shape in first or len(first) < MAX_SHAPES:
            first.setdefault(shape, example)
            rows[shape] += 1
    count = TokenCount()
    for shape, example in first.items():
        check()
        count.sequences += rows[shape] * len(_encoded(tokenizer, example, count))
    return count


def _encoded(tokenizer: Any, example: Example, count: TokenCount) -> list[EncodedChat]:
    """Empty for a row that the template refuses, which is counted as such."""
    try:
        return encode(tokenizer, messages_of(example))
    except TemplateRefuses as refusal:
        count.refused += 1
        if count.refused <= MAX_TOLD:
            count.refusals.append((example.line, str(refusal)[:MAX_REASON]))
        return []


def _preview(chats: Iterable[EncodedChat]) -> list[Segment]:
    left = MAX_PREVIEW
    segments = []
    for text, is_trained in (segment for chat in chats for segment in chat.segments):
        segments.append((text[:left], is_trained))
        left -= len(segments[-1][0])
    return segments
