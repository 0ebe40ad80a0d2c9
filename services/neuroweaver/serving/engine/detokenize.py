"""Text out of tokens, piece by piece, and where it must stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

# What a tokenizer gives for bytes that are no whole character yet.
_INCOMPLETE: Final = "\ufffd"


class Detokenizer:
    """The text of a growing sequence of tokens; each piece is given once, when it cannot change any more.

    A token's text depends on those before it, so a piece is the difference of two decodings that begin at the
    same token (the way of Hugging Face's text-generation-inference).
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0  # where both decodings begin
        self._given = 0  # tokens whose text was given

    def add(self, token: int) -> str:
        self._tokens.append(token)
        before, whole = self._decoded()
        if len(whole) <= len(before) or whole.endswith(_INCOMPLETE):
            return ""
        self._start, self._given = self._given, len(self._tokens)
        return whole[len(before) :]

    def end(self) -> str:
        """What was held back: bytes that never became a character."""
        before, whole = self._decoded()
        self._given = len(self._tokens)
        return whole[len(before) :]

    def _decoded(self) -> tuple[str, str]:
        return self._decode(self._tokens[self._start : self._given]), self._decode(
            self._tokens[self._start :]
        )

    def _decode(self, tokens: list[int]) -> str:
        return str(
            self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


class StopText:
    """Lets text through until one of `stops` appears in it; what could become one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(filter(None, stops))
        self._held = ""
        self.has_stopped = False

    def add(self, piece: str) -> str:
        """What may be shown now, never any of a stop text."""
        if not self._stops or self.has_stopped:
            return "" if self.has_stopped else piece
        text = self._held + piece
        ends = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if ends:
            self.has_stopped, self._held = True, ""
            return text[: min(ends)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
