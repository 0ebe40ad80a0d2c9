"""A real Registry on a free port of this process, in a thread of its own, and what tests put into it."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from databases import prepare
from neuroweaver.client.cli.program import run
from neuroweaver.mesh.database import Database
from neuroweaver.mesh.serve import running
from neuroweaver.mesh.settings import Settings
from neuroweaver.registry.__main__ import service


@contextmanager
def registry_at(home: Path) -> Iterator[str]:
    """The address of a Registry over an embedded database in `home`."""
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    told: dict[str, Any] = {}

    async def serve() -> None:
        settings = Settings(
            service="registry",
            home=home,
            port=0,
            metrics_port=0,
            database_url=f"sqlite:///{home / 'registry.db'}",
            drain_s=0.0,
        )
        await prepare(settings.database_url, "neuroweaver.registry")
        database = Database(settings.database_url, schema="registry")
        async with running(service(database, settings), settings, registry=CollectorRegistry()) as server:
            told["address"] = server.address
            ready.set()
            await stop.wait()

    def work() -> None:
        try:
            loop.run_until_complete(serve())
        except Exception as error:  # noqa: BLE001 - raised again where the test waits
            told["error"] = error
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=work, name="registry")
    thread.start()
    ready.wait()
    try:
        if "error" not in told:
            yield told["address"]
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join()
        if "error" in told:
            raise told["error"]


def prepared(home: Path, commands: Sequence[Sequence[object]]) -> Path:
    """A Registry's home after these commands, to be copied for each test."""
    with registry_at(home) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUROWEAVER_REGISTRY_ADDRESS", address)
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
