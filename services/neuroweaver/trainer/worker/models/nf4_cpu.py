"""NF4 on a CPU: weights that may be trained through, and a second form of them that answers fast.

On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit weight at its first forward pass in evaluation
mode. The packed form passes no gradient to its input, which no error tells: adapters below it all but stop
learning. Unpacking rounds the scales once more. So the weights are kept as they are, and packed copies stand
in only while a model generates, which they do some ten times as fast.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu, has_avx512bf16
from bitsandbytes.nn import Linear4bit

BLOCK_ROWS = 32

# (packed data, its quantisation state) by layer; the base weights never change, so it is made once.
_PACKED: WeakKeyDictionary[Any, tuple[torch.Tensor, Any]] = WeakKeyDictionary()


def keep_trainable(model: Any) -> None:
    """Stop the model's 4-bit layers from repacking themselves."""
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


@contextmanager
def packed_for_generation(model: Any) -> Iterator[None]:
    """The model with packed 4-bit weights, without gradients; as it was afterwards.

    Does nothing for a model without 4-bit layers on a CPU, or on a CPU without AVX512-BF16. The copies stay
    in memory for the next time, half a byte a weight.
    """
    with ExitStack() as stack, torch.no_grad():
        if has_avx512bf16():
            for layer in model.modules():
                if isinstance(layer, Linear4bit) and _can_pack(layer.weight):
                    stack.enter_context(_packed(layer))
        yield


@contextmanager
def _packed(layer: Any) -> Iterator[None]:
    weight = layer.weight
    data, state = weight.data, weight.quant_state
    if layer not in _PACKED:
        # The conversion changes the state it is given.
        _PACKED[layer] = _convert_weight_packed_for_cpu(data, copy.copy(state))
    weight.data, weight.quant_state = _PACKED[layer]
    try:
        yield
    finally:
        weight.data, weight.quant_state = data, state


def _can_pack(weight: Any) -> bool:
    state = getattr(weight, "quant_state", None)
    if state is None or weight.device.type != "cpu":
        return False
    rows, columns = state.shape
    return bool(rows % BLOCK_ROWS == 0 and columns % state.blocksize == 0)
