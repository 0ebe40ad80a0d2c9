"""The built-in training set as questions with answers."""

from __future__ import annotations

import json
from dataclasses import dataclass

from neuroweaver.trainer.data.files import builtins


@dataclass(frozen=True)
class TrainingPair:
    specialization: str
    question: str
    answer: str


def training_pairs() -> list[TrainingPair]:
    lines = builtins()["automotive"].read_text(encoding="utf-8").splitlines()
    return [TrainingPair(**json.loads(line)) for line in lines]
