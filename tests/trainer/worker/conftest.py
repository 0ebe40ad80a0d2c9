from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from neuroweaver.trainer.worker.models.base import load
from trainer.tiny import tiny_llama


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """On a busy machine the threads of one small model wait for each other more than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk, for reading alone; its rows of 64 weights are a block of NF4 each."""
    return tiny_llama(tmp_path_factory.mktemp("tiny"), hidden_size=64)


@pytest.fixture(scope="session")
def loaded(folder: Path) -> tuple[Any, Any]:
    """The tiny model in fp32 and its tokenizer, which tests leave as they are."""
    return load(folder, dtype=torch.float32)
