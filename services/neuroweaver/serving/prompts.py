"""Prompts as token ids: of a chat by the model's template, in which contents are plain text; or as given."""

from __future__ import annotations

from typing import Any

from neuroweaver.base_models.chat_template import TemplateRefuses, chat_template
from neuroweaver.serving.requests import ApiError, Message


def token_ids(tokenizer: Any, prompt: list[Message] | str | list[int]) -> list[int]:
    """Raises ApiError."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if prompt and isinstance(prompt[0], dict):
        return _of_chat(tokenizer, prompt)
    ids = [token for token in prompt if isinstance(token, int)]
    if max(ids) >= len(tokenizer):
        raise ApiError(
            f"Invalid value for 'prompt': the vocabulary ends at {len(tokenizer) - 1}.",
            parameter="prompt",
            code="invalid_value",
        )
    return ids


def _of_chat(tokenizer: Any, messages: Any) -> list[int]:
    if not tokenizer.chat_template:
        raise ApiError(
            "This model has no chat template; use /v1/completions.",
            parameter="messages",
            code="no_chat_template",
        )
    try:
        return chat_template(tokenizer).prompt_ids(messages)
    except TemplateRefuses as error:  # for example two turns of a user in a row
        raise ApiError(
            f"The model's chat template refuses these messages: {error}",
            parameter="messages",
            code="invalid_value",
        ) from error
