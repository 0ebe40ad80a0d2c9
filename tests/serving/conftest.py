from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.models import adapter, config_for, tiny_base
from serving.processes import Served, served


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("serving") / "base")


@pytest.fixture(scope="session")
def first(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(base, tmp_path_factory.mktemp("serving") / "first", seed=1)


@pytest.fixture(scope="session")
def second(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(base, tmp_path_factory.mktemp("serving") / "second", seed=2)


@pytest.fixture(scope="session")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The base alone, four at a time and two waiting; tests leave it idle."""
    config = config_for(base, max_batch_size=4, max_queue_size=2, revision=7)
    with served(tmp_path_factory.mktemp("serving") / "server", config) as running:
        yield running
