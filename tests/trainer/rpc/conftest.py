from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from neuroweaver.v1 import trainer_pb2 as pb
from trainer.serving import Trainer, trainer
from trainer.tiny import tiny_llama

ROW = '{"question": "Why do brakes squeal?", "answer": "The pads are worn."}\n'


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def home(tmp_path: Path, counting_here: None) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "good.jsonl").write_text(
        "".join(ROW.replace("brakes", part) for part in ("brakes", "tyres", "belts"))
    )
    return tmp_path


@pytest.fixture
async def served(home: Path) -> AsyncIterator[Trainer]:
    async with trainer(home) as started:
        yield started


@pytest.fixture
def config(model_folder: Path) -> pb.TrainingConfig:
    return pb.TrainingConfig(
        model_name="advisor",
        base_model=str(model_folder),
        specialization="service_advisor",
        dataset_path="good.jsonl",
    )
