"""The automotive specialisations shipped with the trainer: prompts, rubrics and evaluation prompts."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

_AUTOMOTIVE: Final = Path(str(resources.files("neuroweaver.trainer.data"))) / "automotive"


@dataclass(frozen=True, slots=True)
class Criterion:
    """One line of a rubric, judged from 0 to 10; the weights of a rubric sum to 1."""

    name: str
    description: str
    weight: float


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """A question kept out of training, with a reference answer."""

    id: str
    prompt: str
    reference: str


@dataclass(frozen=True, slots=True)
class Specialization:
    id: str
    title: str
    description: str
    system_prompt: str
    rubric: tuple[Criterion, ...]
    evaluation_prompts: tuple[EvaluationPrompt, ...]


@cache
def load_specializations() -> Mapping[str, Specialization]:
    """Every shipped specialisation by id, in the order of the file; read once a process."""
    prompts = list(_lines(_AUTOMOTIVE / "evaluation.jsonl"))
    entries = tomllib.loads((_AUTOMOTIVE / "specializations.toml").read_text(encoding="utf-8"))
    return MappingProxyType(
        {entry["id"]: _specialization(entry, prompts) for entry in entries["specialization"]}
    )


def _specialization(entry: dict[str, Any], prompts: list[dict[str, str]]) -> Specialization:
    rubric = tuple(Criterion(**criterion) for criterion in entry["rubric"])
    evaluation_prompts = tuple(
        EvaluationPrompt(id=line["id"], prompt=line["prompt"], reference=line["reference"])
        for line in prompts
        if line["specialization"] == entry["id"]
    )
    return Specialization(**entry | {"rubric": rubric, "evaluation_prompts": evaluation_prompts})


def _lines(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def system_prompts() -> Mapping[str, str]:
    return {name: specialization.system_prompt for name, specialization in load_specializations().items()}
