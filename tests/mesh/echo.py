"""A small service to test the mesh with. Run as a program, it serves until it is told to stop."""

# ruff: noqa: N802 (the names of RPCs)
from __future__ import annotations

import asyncio
import importlib
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import grpc
from grpc_tools import protoc
from prometheus_client import CollectorRegistry

import neuroweaver.mesh.server.serve
from neuroweaver.mesh.server.serve import Running, Service, running
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.mesh.wire.settings import Settings

NAME = "meshtest.EchoService"
_HERE = Path(__file__).parent
_PROTOS = _HERE.parents[1] / "protos"


def _compiled() -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        sources = [f"-I{path}" for path in (_HERE, _PROTOS, resources.files("grpc_tools") / "_proto")]
        arguments = [*sources, f"--python_out={folder}", f"--grpc_python_out={folder}", "echo.proto"]
        if protoc.main(["protoc", *arguments]):
            raise RuntimeError("echo.proto does not compile")
        sys.path.insert(0, folder)
        try:
            return importlib.import_module("echo_pb2"), importlib.import_module("echo_pb2_grpc")
        finally:
            sys.path.remove(folder)


pb, pb_grpc = _compiled()


class Echo(pb_grpc.EchoServiceServicer):
    """Answers what it is asked. Tests override what they want otherwise. `Missing` stays the generated one."""

    async def Say(self, request, context):
        return pb.Answer(text=request.text)

    async def Count(self, request_iterator, context):
        return pb.Answer(sequence=len([request async for request in request_iterator]))

    async def Repeat(self, request, context):
        for sequence in range(1, 4):
            yield pb.Answer(text=request.text, sequence=sequence)

    async def WatchWords(self, request, context):
        yield pb.Answer(text="watching")
        await asyncio.Event().wait()

    async def Chat(self, request_iterator, context):
        async for request in request_iterator:
            yield pb.Answer(text=request.text)


def settings(home: Path = Path("/nonexistent"), **changes: Any) -> Settings:
    values = {
        "service": "echo",
        "home": home,
        "port": 0,
        "metrics_port": 0,
        "database_url": "",
        "drain_s": 5.0,
    }
    return Settings(**{**values, **changes})


def service(servicer: Any, **changes: Any) -> Service:
    def add(server: grpc.aio.Server) -> None:
        pb_grpc.add_EchoServiceServicer_to_server(servicer, server)

    return Service(**{"names": [NAME], "add": add, **changes})


@asynccontextmanager
async def started(
    servicer: Any = None, *, registry: CollectorRegistry | None = None, **changes: Any
) -> AsyncIterator[Running]:
    async with running(
        service(servicer or Echo()), settings(**changes), registry=registry or CollectorRegistry()
    ) as server:
        yield server


@asynccontextmanager
async def stub(servicer: Any = None, **changes: Any) -> AsyncIterator[Any]:
    """A stub of a running server."""
    async with started(servicer, **changes) as server, channel(server.address) as client:
        yield pb_grpc.EchoServiceStub(client)


class Slow(Echo):
    async def Say(self, request, context):
        await asyncio.sleep(float(request.text))
        return pb.Answer(text="done")


if __name__ == "__main__":
    neuroweaver.mesh.server.serve.run(
        "echo", Settings, lambda told: neuroweaver.mesh.server.serve.serve(service(Slow()), told)
    )
