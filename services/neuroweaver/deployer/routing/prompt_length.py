"""Prompts that are too long for a model, whatever its tokenizer: refused before a server tokenizes them.

NeuroWeaver's own model server refuses them itself, by their beginning. vLLM tokenizes all that it is sent.
"""

from __future__ import annotations

from typing import Any, Final

from neuroweaver.mesh.wire.json_values import Broken, parsed

LONGEST_TOKEN: Final = 128
"""In characters: runs of spaces, in the vocabularies of Llama 3, Qwen and others. No text has fewer tokens
than its characters divided by it.
"""
# Pictures and sounds, whose length says little of their tokens.
_NO_TEXT: Final = frozenset({"image_url", "image_embeds", "input_audio", "audio_url", "video_url", "file"})


def is_longer(body: bytes, max_chars: int) -> bool:
    """Whether the texts of a request have more characters than that. Of a body that is not JSON its server
    says what is wrong with it.
    """
    if len(body) <= max_chars:
        return False
    try:
        return _characters(parsed(body)) > max_chars
    except Broken:
        return False


def _characters(whole: Any) -> int:
    """Without recursion, whose limit the value may come close to."""
    count, parts = 0, [whole]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            count += len(part)
        elif isinstance(part, dict):
            parts += [value for name, value in part.items() if name not in _NO_TEXT]
        elif isinstance(part, list):
            parts += part
    return count
