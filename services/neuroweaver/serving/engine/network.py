"""A causal language model over rows of unequal length, with the adapters beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from neuroweaver.serving.engine import sampling
from neuroweaver.serving.engine.generation import Draw
from neuroweaver.serving.engine.kv_cache import KvCache, Window, aligned

_FULL: Final = "full_attention"
_SLIDING: Final = "sliding_attention"


class CannotServe(Exception):
    """The model loads, but this server cannot serve it; the text says why."""


class Adapters(Protocol):
    """Chooses whose weights the next forward pass adds for each of its rows."""

    def chosen(self, versions: Sequence[str]) -> dict[str, Any]:
        """The arguments of the forward pass for rows of these versions."""

    def add(self, version: str, folder: Path) -> None: ...

    def remove(self, version: str) -> None: ...


class NoAdapters:
    """Every row gets the model as it is."""

    def chosen(self, versions: Sequence[str]) -> dict[str, Any]:
        del versions
        return {}

    def add(self, version: str, folder: Path) -> None:
        del folder
        raise CannotServe(f"{version} is an adapter, and the server was started without any")

    def remove(self, version: str) -> None:
        raise CannotServe(f"{version} is part of the model")


class Network:
    """Not thread-safe: one thread forwards, moves rows and changes adapters.

    model: of transformers, in evaluation mode. max_context: tokens of one row; max_cells: of all together.
    """

    def __init__(
        self, model: Any, *, max_context: int, max_cells: int, adapters: Adapters | None = None
    ) -> None:
        config = model.config.get_text_config()
        self.max_context = max_context
        self.device: torch.device = model.device
        self.adapters: Adapters = adapters or NoAdapters()
        self._model = model
        self._kinds = _kinds_of_attention(config)
        self._sliding_window: int = getattr(config, "sliding_window", None) or 0
        self._cache = KvCache(config.num_hidden_layers, max(max_cells, aligned(max_context)))
        self._head = model.get_output_embeddings()

    @torch.inference_mode()
    def reserve(self, rows: int, length: int) -> bool:
        """Makes room for `rows` rows of `length` tokens; False if the memory does not suffice.

        It does for one row of `max_context`.
        """
        return self._cache.reserve(rows, length)

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        self._cache.move(source, target)

    @torch.inference_mode()
    def release(self) -> None:
        """Forgets all rows and gives their memory back."""
        self._cache.release()

    @torch.inference_mode()
    def forward(
        self,
        first_row: int,
        tokens: Sequence[Sequence[int]],
        starts: Sequence[int],
        versions: Sequence[str],
    ) -> torch.Tensor:
        """Logits after the last of each row's new tokens: (rows, vocabulary).

        tokens: of consecutive rows from `first_row` on. starts: how many each row holds already.
        """
        longest = max(map(len, tokens))
        padded = [[*row, *[0] * (longest - len(row))] for row in tokens]
        first = torch.tensor(starts, device=self.device)[:, None]
        positions = first + torch.arange(longest, device=self.device)  # (rows, tokens)
        length = aligned(max(starts) + longest)
        self._cache.look(Window(slice(first_row, first_row + len(tokens)), positions, length))
        last = torch.tensor([len(row) - 1 for row in tokens], device=self.device)
        # The head sees each row's last new token alone: a vocabulary is large, a prompt is long.
        narrowing = self._head.register_forward_pre_hook(lambda _, inputs: (_picked(inputs[0], last),))
        try:
            output = self._model(
                input_ids=torch.tensor(padded, device=self.device),
                attention_mask=self._mask(positions, length),
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                **self.adapters.chosen(versions),
            )
        finally:
            narrowing.remove()
        logits: torch.Tensor = output.logits[:, 0]
        return logits

    @torch.inference_mode()
    def choose(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
        return sampling.choose(logits.float(), draws)

    def _mask(self, positions: torch.Tensor, length: int) -> Any:
        """Additive, (rows, 1, tokens, length): a token sees those of its row up to itself."""
        columns = torch.arange(length, device=self.device)
        is_seen = columns <= positions[..., None]
        masks = {_FULL: is_seen}
        if _SLIDING in self._kinds:
            masks[_SLIDING] = is_seen & (columns > positions[..., None] - self._sliding_window)
        additive = {kind: self._additive(masks[kind]) for kind in self._kinds}
        return additive if len(additive) > 1 else next(iter(additive.values()))

    def _additive(self, is_seen: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(is_seen.shape, dtype=self._model.dtype, device=self.device)
        return mask.masked_fill_(~is_seen, torch.finfo(mask.dtype).min)[:, None]


def _picked(hidden: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """One column a row: (rows, 1, size) of (rows, columns, size)."""
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), columns][:, None]


def _kinds_of_attention(config: Any) -> tuple[str, ...]:
    """Raises CannotServe for layers whose state is more than keys and values."""
    has_window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    kinds = set(getattr(config, "layer_types", None) or [_SLIDING if has_window else _FULL])
    if foreign := sorted(kinds - {_FULL, _SLIDING}):
        raise CannotServe(
            f"the model has layers of kind {foreign[0]}, which continuous batching cannot serve"
        )
    return tuple(sorted(kinds))
