"""A real Registry on a free port of this process, in a thread of its own, and what tests put into it."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from prometheus_client import CollectorRegistry

from databases import prepare
from neuroweaver.cli.program import run
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.server.serve import running
from neuroweaver.registry.__main__ import service
from neuroweaver.registry.settings import RegistrySettings


@contextmanager
def registry_at(home: Path) -> Iterator[str]:
    """The address of a Registry over an embedded database in `home`; the environment has it too."""

    @asynccontextmanager
    async def serve() -> AsyncIterator[str]:
        url = f"sqlite:///{home / 'registry.db'}"
        settings = RegistrySettings(
            home=home, port=0, metrics_port=0, database_url=url, drain_s=0.0, webhook_private=True
        )
        await prepare(settings.database_url, "neuroweaver.registry")
        database = Database(settings.database_url, schema="registry")
        async with running(service(database, settings), settings, registry=CollectorRegistry()) as server:
            yield server.address

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve()) as address,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("NEUROWEAVER_REGISTRY_ADDRESS", address)
        yield address


def prepared(home: Path, commands: Sequence[Sequence[object]]) -> Path:
    """A Registry's home after these commands, to be copied for each test."""
    with registry_at(home):
        for command in commands:
            assert run([str(argument) for argument in command]) == 0, command
    return home


def adapter(folder: Path, *, rank: int = 8, fill: bytes = b"a", base: str = "tiny") -> Path:
    """A folder as PEFT writes it; `fill` makes its weights differ from others."""
    data = fill * 64
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    (folder / "adapter/adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    (folder / "adapter/adapter_config.json").write_text(
        json.dumps({"r": rank, "base_model_name_or_path": base, "peft_type": "LORA"})
    )
    return folder
