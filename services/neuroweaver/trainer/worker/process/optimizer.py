"""What the training loops of reward model and policy do with an optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


class TrainingDiverged(Exception):
    """The loss or its gradient is no finite number."""


def adamw(
    adapter: Iterable[torch.Tensor],
    head: Iterable[torch.Tensor],
    *,
    learning_rate: float,
    head_learning_rate: float,
) -> torch.optim.AdamW:
    """AdamW without weight decay, with a learning rate of its own for the head."""
    groups = [
        {"params": list(adapter), "lr": learning_rate},
        {"params": list(head), "lr": head_learning_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=0.0)


def clipped_step(optimizer: torch.optim.Optimizer, max_norm: float, *, loss: float, at: str) -> float:
    """Clip all gradients together, then step; returns their norm before the clip.

    at: where this is, for the message of TrainingDiverged, which is raised before any weight moves.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_norm).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingDiverged(f"{at}: the loss is {loss:g}, the norm of its gradient {norm:g}")
    optimizer.step()
    return norm
