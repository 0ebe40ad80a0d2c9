"""Checkpoints on disk, named as Hugging Face's trainers name them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from neuroweaver.mesh.machine.files import whole_folder

STATE: Final = "state.pt"
# Optimiser steps between two checkpoints of fine-tuning and of the reward model.
SAVE_EVERY: Final = 10


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first."""
    named = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(named, key=checkpoint_step)


def last_checkpoint(folder: Path) -> Path | None:
    return next(reversed(checkpoints(folder)), None)


def checkpoint_step(checkpoint: Path) -> int:
    """How many optimiser steps the checkpoint has behind it."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def save_state(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write `state` as the checkpoint of a new step, which replaces the earlier ones."""
    earlier = checkpoints(folder)
    with whole_folder(folder / f"checkpoint-{step}") as partial:
        torch.save(state, partial / STATE)
    for checkpoint in earlier:
        shutil.rmtree(checkpoint)


def load_state(checkpoint: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    state: dict[str, Any] = torch.load(checkpoint / STATE, map_location=device, weights_only=True)
    return state
