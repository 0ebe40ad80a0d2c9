"""What a job's model would read of a data set: tokens, a preview, and the rows that it cannot be given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from neuroweaver.base_models.chat_template import chat_template
from neuroweaver.base_models.rendering import TemplateRefuses
from neuroweaver.trainer.data.encoding import IGNORED, EncodedChat, Segment, encode
from neuroweaver.trainer.data.rows import Example
from neuroweaver.trainer.data.turns import messages_of

# Refusals that are told one by one, and how much of a template's words.
MAX_TOLD: Final = 100
MAX_REASON: Final = 500
# Of a row in the preview, in characters: a template can write any number.
MAX_PREVIEW: Final = 1 << 20


@dataclass
class TokenCount:
    """total, longest: of whole rows. trained: what the loss sees of them, cut at the limit.

    truncated: rows that are cut; unanswered: rows of which the loss sees nothing. preview: the first row
    of which it sees anything, cut.
    sequences: what fine-tuning passes over, one or more a row. knows_words: whether any answer has a token
    that is not unknown, and not its end. rows: all that were counted.
    refused: rows that the model cannot be given; refusals: line and reason of the first of them.
    """

    total: int = 0
    trained: int = 0
    longest: int = 0
    truncated: int = 0
    unanswered: int = 0
    sequences: int = 0
    knows_words: bool = False
    rows: int = 0
    preview: list[Segment] = field(default_factory=list)
    refused: int = 0
    refusals: list[tuple[int, str]] = field(default_factory=list)


def count_tokens(
    tokenizer: Any, examples: Iterable[Example], limit: int, *, vocab_size: int = 0
) -> TokenCount:
    """Totals over the examples as a job encodes them, and the first as the model sees it.

    vocab_size: rows of the base model's embedding; 0 where unknown.
    """
    count = TokenCount()
    # Of no meaning as an answer.
    empty = {IGNORED, tokenizer.unk_token_id, chat_template(tokenizer).end}
    for example in examples:
        count.rows += 1
        chats = _encoded(tokenizer, example, vocab_size, count)
        lengths = [len(chat.input_ids) for chat in chats]
        cut = [chat.cut(limit) for chat in chats]
        targets = [chat.target_tokens for chat in cut]
        count.total += sum(lengths)
        count.trained += sum(targets)
        count.longest = max(count.longest, *lengths, 0)
        count.truncated += any(length > limit for length in lengths)
        count.unanswered += bool(chats) and not any(targets)
        count.sequences += sum(map(bool, targets))
        count.knows_words = count.knows_words or any(not empty.issuperset(chat.labels) for chat in chats)
        count.preview = count.preview or _preview(tokenizer, cut)
    return count


def foreign_tokens(tokenizer: Any, ids: Iterable[int], vocab_size: int) -> str:
    """The tokens among `ids` for which an embedding of `vocab_size` rows has none, in words."""
    foreign = sorted({token for token in ids if token >= vocab_size}) if vocab_size else []
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(token)} ({token})" for token in foreign[:10])


def _encoded(tokenizer: Any, example: Example, vocab_size: int, count: TokenCount) -> list[EncodedChat]:
    """Empty for a row that the model cannot be given, which is counted as such."""
    try:
        chats = encode(tokenizer, messages_of(example))
    except TemplateRefuses as refusal:
        reason = f"the chat template refuses it: {str(refusal)[:MAX_REASON]}"
    else:
        ids = (token for chat in chats for token in chat.input_ids)
        foreign = foreign_tokens(tokenizer, ids, vocab_size)
        if not foreign:
            return chats
        reason = f"the base model's embedding has {vocab_size} rows, and none for {foreign}"
    count.refused += 1
    if count.refused <= MAX_TOLD:
        count.refusals.append((example.line, reason))
    return []


def _preview(tokenizer: Any, chats: Iterable[EncodedChat]) -> list[Segment]:
    """What the loss passes over: sequences of which it sees nothing are left out."""
    left = MAX_PREVIEW
    segments = []
    trained = [chat for chat in chats if chat.target_tokens]
    for text, is_trained in (segment for chat in trained for segment in chat.kept_segments(tokenizer)):
        segments.append((text[:left], is_trained))
        left -= len(segments[-1][0])
    return segments
