"""Which layers of a base model can be asked to get an adapter, by its files alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from neuroweaver.base_models import model_folder
from neuroweaver.base_models.catalog import BUILTIN_SHAPE, BaseModel

# The shipped model's folder is made by its first job.
_BUILTIN: Final = tuple(
    f"model.layers.{layer}.{name}"
    for layer in range(BUILTIN_SHAPE.layers)
    for name in (
        *(f"self_attn.{letter}_proj" for letter in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    )
)
# Where they share a matrix, the file has it under the other's name.
_ENDS: Final = ("model.embed_tokens", "lm_head")


def layers_of(base: BaseModel) -> tuple[str, ...]:
    """Full names; none where the weights are still on the hub. Raises model_folder.Unusable."""
    if base.kind == "hub":
        return ()
    return _BUILTIN if base.kind == "builtin" else model_folder.layers(Path(base.location))


def unknown(asked: Iterable[str], layers: Sequence[str]) -> list[str]:
    """The asked-for names that mean no layer: a layer has its full name, and each end of it after a dot."""
    ends = {end for name in (*layers, *_ENDS) for end in _ends(name)}
    return [name for name in asked if name not in ends]


def repeated(layers: Iterable[str]) -> list[str]:
    """The short names of those that stand in the stack of numbered layers, each once."""
    return sorted({name.rpartition(".")[2] for name in layers if re.search(r"\.\d+\.", name)})


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]
