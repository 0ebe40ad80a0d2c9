"""A real Experiment service on a free port of this process, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from databases import prepare
from neuroweaver.experiment.__main__ import service
from neuroweaver.experiment.releases import Releases
from neuroweaver.mesh.channel import channel
from neuroweaver.mesh.database import Database
from neuroweaver.mesh.serve import running
from neuroweaver.mesh.settings import Settings
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub


@contextmanager
def experiments_at(home: Path) -> Iterator[str]:
    """The address of the service over an embedded database in `home`. No Registry answers it."""
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    told: dict[str, Any] = {}

    async def serve() -> None:
        settings = Settings(
            service="experiment",
            home=home,
            port=0,
            metrics_port=0,
            database_url=f"sqlite:///{home / 'experiment.db'}",
            drain_s=0.0,
        )
        await prepare(settings.database_url, "neuroweaver.experiment")
        database = Database(settings.database_url, schema="experiment")
        async with channel("127.0.0.1:1") as registry_channel:
            served = service(database, Releases(RegistryServiceStub(registry_channel)))
            async with running(served, settings, registry=CollectorRegistry()) as server:
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

    thread = threading.Thread(target=work, name="experiment")
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
