from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from experiment.serving import World, world


@pytest.fixture
async def mesh(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A real Registry and a real Experiment service in this process, over the same kind of database."""
    async with world(database_url, tmp_path) as served:
        yield served
