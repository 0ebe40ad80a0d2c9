from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from databases import prepare
from neuroweaver.mesh.database.database import Database
from neuroweaver.trainer.control import counting
from neuroweaver.trainer.data import __main__ as counter


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await prepare(database_url, "neuroweaver.trainer")
    opened = Database(database_url, schema="trainer")
    yield opened
    await opened.close()


@pytest.fixture
def counting_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are counted in this process, which saves the start of another; an own test starts those."""

    def ran(asked: str, deadline_s: float) -> tuple[int, str, str, int]:
        return 0, json.dumps(counter.answer(json.loads(asked))), "", 0

    monkeypatch.setattr(counting, "_ran", ran)
