"""Keys and values of the sequences at work: a row a sequence, each filled from its own beginning.

Rows differ in length, so a sequence joins or leaves without a touch to the others. What lies behind a row's
end is finite rubbish that the attention mask hides until it is written over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

# Lengths grow by whole steps: fewer copies, and attention kernels of GPUs want masks whose rows are aligned.
_ALIGNMENT: Final = 64


@dataclass(frozen=True)
class Window:
    """What one forward pass writes and sees.

    rows: a run of rows. positions: (rows, tokens), where each new token lies in its row. length: how much of
    the rows attention looks at.
    """

    rows: slice
    positions: torch.Tensor
    length: int

    @property
    def index(self) -> torch.Tensor:
        return torch.arange(self.positions.shape[0], device=self.positions.device)[:, None]


class KvLayer(CacheLayerMixin):
    """keys, values: (rows, heads, capacity, head size)."""

    is_sliding = False

    def __init__(self, cache: KvCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, capacity = self._cache.rows, self._cache.capacity
        self.keys = key_states.new_zeros(rows, key_states.shape[1], capacity, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], capacity, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New states: (rows of the window, heads, tokens, head size). Gives all that the window sees."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window, index = self._cache.window, self._cache.index
        keys, values = self.keys[window.rows], self.values[window.rows]
        keys[index, :, window.positions] = key_states.transpose(1, 2)
        values[index, :, window.positions] = value_states.transpose(1, 2)
        return keys[:, :, : window.length], values[:, :, : window.length]

    def resize(self, rows: int, capacity: int) -> None:
        if self.is_initialized:
            self.keys = _resized(self.keys, rows, capacity)
            self.values = _resized(self.values, rows, capacity)

    def move(self, source: int, target: int) -> None:
        if self.is_initialized:
            self.keys[target] = self.keys[source]
            self.values[target] = self.values[source]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        del query_length
        return self._cache.window.length, 0

    def get_seq_length(self) -> int:
        return self._cache.window.length

    def get_max_length(self) -> int:
        return -1


class KvCache(Cache):
    """The cache that a network of transformers reads and writes, over rows of unequal length.

    max_cells: tokens that may be held, rows times capacity.
    """

    def __init__(self, layers: int, max_cells: int) -> None:
        super().__init__(layers=[KvLayer(self) for _ in range(layers)])
        self.max_cells = max_cells
        self.rows = self.capacity = 0
        self.window = Window(slice(0, 0), torch.zeros(0, 0, dtype=torch.long), 0)
        self.index = self.window.index

    def look(self, window: Window) -> None:
        """The next forward pass is about `window`."""
        self.window, self.index = window, window.index

    def reserve(self, rows: int, length: int) -> bool:
        """Makes room for `rows` of `length` tokens; False if that is more than there may be."""
        length = aligned(length)
        if rows <= self.rows and length <= self.capacity:
            return True
        if max(rows, self.rows) * max(length, self.capacity) > self.max_cells:
            if rows * length > self.max_cells:
                return False
            self._resize(rows, length)
            return True
        wanted = max(rows, self.rows), max(length, self.capacity)
        doubled = (
            wanted[0] if rows <= self.rows else max(rows, 2 * self.rows),
            wanted[1] if length <= self.capacity else max(length, 2 * self.capacity),
        )
        self._resize(*(doubled if doubled[0] * doubled[1] <= self.max_cells else wanted))
        return True

    def move(self, source: int, target: int) -> None:
        """Copies a row over another."""
        for layer in self.layers:
            layer.move(source, target)

    def release(self) -> None:
        """Gives the memory back."""
        self._resize(0, 0)

    def _resize(self, rows: int, capacity: int) -> None:
        for layer in self.layers:
            layer.resize(rows, capacity)
        self.rows, self.capacity = rows, capacity


def aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _resized(states: torch.Tensor, rows: int, capacity: int) -> torch.Tensor:
    # Zeros, not empty: a NaN behind a row's end would survive the mask (0 times NaN).
    target = states.new_zeros(rows, states.shape[1], capacity, states.shape[3])
    kept_rows, kept = min(rows, states.shape[0]), min(capacity, states.shape[2])
    target[:kept_rows, :, :kept] = states[:kept_rows, :, :kept]
    return target
