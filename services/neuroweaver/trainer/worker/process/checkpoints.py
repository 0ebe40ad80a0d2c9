"""Checkpoints on disk, as Hugging Face's trainers name them."""

from __future__ import annotations

import re
from pathlib import Path


class TrainingDiverged(Exception):
    """The loss or its gradient is no number any more; a lower learning rate may help."""


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """How many optimiser steps the checkpoint has behind it."""
    return int(checkpoint.name.removeprefix("checkpoint-"))
