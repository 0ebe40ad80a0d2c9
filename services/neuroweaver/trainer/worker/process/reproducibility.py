"""What a stage changes for a while and puts back: a model's mode, the random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model without dropout, then in its former mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The random state of torch that `seed` gives, then the former one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
