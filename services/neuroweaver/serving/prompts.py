"""Prompts as token ids: of a chat by the model's template, in which contents are plain text; or as given."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from neuroweaver.base_models.chat_template import chat_template
from neuroweaver.base_models.control_tokens import tokenizing
from neuroweaver.base_models.rendering import TemplateRefuses
from neuroweaver.serving.requests import ApiError, Message

# Of a text. A cut between two adds a few tokens at most.
_PIECE: Final = 16 << 10
_CUT_TOKENS: Final = 16


def token_ids(tokenizer: Any, prompt: list[Message] | str | list[int], max_tokens: int) -> list[int]:
    """A prompt that is known to have more than `max_tokens` is refused. Raises ApiError."""
    if isinstance(prompt, str):
        return _of_text(tokenizer, prompt, max_tokens)
    if prompt and isinstance(prompt[0], dict):
        return _of_chat(tokenizer, prompt, max_tokens)
    ids = [token for token in prompt if isinstance(token, int)]
    if max(ids) >= len(tokenizer):
        raise ApiError(
            f"Invalid value for 'prompt': the vocabulary ends at {len(tokenizer) - 1}.",
            parameter="prompt",
            code="invalid_value",
        )
    return ids


def try_template(tokenizer: Any) -> None:
    """Renders a chat, as far as the template takes it: one that never ends does not end here."""
    if tokenizer.chat_template:
        with contextlib.suppress(ApiError):
            _of_chat(tokenizer, [{"role": "user", "content": "Hello"}], sys.maxsize)


def _of_text(tokenizer: Any, prompt: str, max_tokens: int) -> list[int]:
    """A control token in the text is one: whoever writes the whole prompt writes its turns."""

    def encoded(text: str, **options: bool) -> list[int]:
        with tokenizing():
            return list(tokenizer(text, **options)["input_ids"])

    with _refusing("prompt", "The model cannot read this prompt"):
        _refuse_long(partial(encoded, add_special_tokens=False), prompt, max_tokens, "prompt")
        return encoded(prompt)


def _refuse_long(encoded: Callable[[str], list[int]], text: str, max_tokens: int, parameter: str) -> None:
    """Counts by pieces, and only as far as it may be: a long text at once takes much memory and time."""
    if len(text) <= max_tokens:
        return
    least = 0
    for begin in range(0, len(text), _PIECE):
        least += max(0, len(encoded(text[begin : begin + _PIECE])) - _CUT_TOKENS)
        if least > max_tokens:
            raise ApiError(
                f"This model's maximum context length is {max_tokens} tokens, but the prompt has more.",
                parameter=parameter,
                code="context_length_exceeded",
            )


def _of_chat(tokenizer: Any, messages: Any, max_tokens: int) -> list[int]:
    if not tokenizer.chat_template:
        raise ApiError(
            "This model has no chat template; use /v1/completions.",
            parameter="messages",
            code="no_chat_template",
        )
    # For example two turns of a user in a row.
    with _refusing("messages", "The model's chat template refuses these messages"):
        template = chat_template(tokenizer)
        rendered = template.render(template.quoted(messages), opens_turn=True)
        _refuse_long(template.token_ids, rendered, max_tokens, "messages")
        return template.token_ids(rendered)


@contextlib.contextmanager
def _refusing(parameter: str, fault: str) -> Iterator[None]:
    try:
        yield
    except TemplateRefuses as error:
        raise ApiError(f"{fault}: {error}", parameter=parameter, code="invalid_value") from error
