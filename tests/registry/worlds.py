"""Servers for many short stories, each over an empty database of its own, all on one event loop."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import Awaitable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psycopg
import uvloop
from prometheus_client import CollectorRegistry

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate
from neuroweaver.mesh.server.serve import running
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.registry.__main__ import service
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub

T = TypeVar("T")

# That a commit reaches the disk is another test's business; in memory there are ten times as many of them.
_MEMORY = Path("/dev/shm")


class Databases(Protocol):
    def fresh(self) -> AbstractContextManager[str]:
        """The URL of an empty database with the tables in it, for as long as the block lasts."""


@dataclass
class World:
    """One event loop and one folder of artifacts for all stories; a server for each."""

    databases: Databases
    home: Path
    runner: asyncio.Runner

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self.runner.run(awaited())

    async def serve(self, stack: AsyncExitStack) -> Any:
        """A stub of a server that ends with the stack."""
        url = stack.enter_context(self.databases.fresh())
        settings = RegistrySettings(
            home=self.home, port=0, metrics_port=0, database_url=url, drain_s=0.0, webhook_private=True
        )
        database = Database(url, schema="registry")
        server = await stack.enter_async_context(
            running(service(database, settings), settings, registry=CollectorRegistry())
        )
        return RegistryServiceStub(await stack.enter_async_context(channel(server.address)))


class SqliteDatabases:
    """Copies of one file that was migrated once."""

    def __init__(self, folder: Path) -> None:
        self._template = folder / "template.db"
        asyncio.run(_migrated(f"sqlite:///{self._template}"))

    @contextmanager
    def fresh(self) -> Iterator[str]:
        file = self._template.with_name(f"{uuid.uuid4().hex}.db")
        shutil.copy(self._template, file)
        yield f"sqlite:///{file}"
        file.unlink()


class PostgresDatabases:
    """Copies of one database of a server that was migrated once."""

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        self._template = f"template_{uuid.uuid4().hex}"
        self._execute(f"CREATE DATABASE {self._template} STRATEGY file_copy")
        asyncio.run(_migrated(self._url(self._template)))

    @contextmanager
    def fresh(self) -> Iterator[str]:
        name = f"test_{uuid.uuid4().hex}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {self._template} STRATEGY file_copy")
        yield self._url(name)
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _url(self, name: str) -> str:
        return self._server_url.removesuffix("postgres") + name

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self._server_url, autocommit=True) as connection:
            connection.execute(statement)


async def _migrated(url: str) -> None:
    database = Database(url, schema="registry")
    await migrate(database, "neuroweaver.registry")
    await database.close()


@contextmanager
def world(postgres_server: str = "") -> Iterator[World]:
    """postgres_server: the URL of its maintenance database; without it, SQLite."""
    with (
        tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        home = Path(folder)
        databases = PostgresDatabases(postgres_server) if postgres_server else SqliteDatabases(home)
        yield World(databases, home, runner)
