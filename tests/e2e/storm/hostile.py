"""Clients that mean harm, or are careless: each goes on until the storm is over and remembers what it was answered."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import httpx2

from e2e.storm.record import Record, until
from neuroweaver.v1 import deployer_pb2, experiment_pb2, registry_pb2, trainer_pb2
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
from neuroweaver.v1.trainer_pb2_grpc import TrainerServiceStub
from registry.calls import digest_of, safetensors

PREFIX = "/neuroweaver.v1."


@dataclass
class Hostile:
    """addresses: of the services. endpoint: of the router in front of a deployment, such as http://127.0.0.1:8080/v1."""

    addresses: Mapping[str, str]
    endpoint: str
    artifact: tuple[str, str, str]
    """Model, version and path of a file of some megabytes."""
    record: Record
    stop: asyncio.Event

    async def run(self) -> None:
        kinds: list[tuple[Callable[[], Awaitable[None]], float]] = [
            (self.many_elements, 1.0),
            (self.unread_downloads, 3.0),
            (self.stalled_uploads, 3.0),
            (self.page_tokens, 0.5),
            (self.idle_watches, 0.0),
            (self.slow_heads, 2.0),
            (self.long_prompts, 2.0),
            (self.no_text, 0.5),
            (self.abandoned_validations, 1.0),
        ]
        async with asyncio.TaskGroup() as group:
            for kind, pause_s in kinds:
                group.create_task(self._repeat(kind, pause_s))

    async def _repeat(self, kind: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while await until(self.stop, random.uniform(0.5, 1.5) * pause_s + 0.1):
            await kind()

    async def _raw(self, service: str, method: str, message: bytes, *, is_stream: bool = False) -> None:
        name = f"{PREFIX}{service.title()}Service/{method}"
        async with grpc.aio.insecure_channel(self.addresses[service]) as channel:
            if is_stream:
                call = channel.stream_unary(name)(iter([message]), timeout=60)
            else:
                call = channel.unary_unary(name)(message, timeout=60)
            await self._remember(method, call)

    async def _remember(self, kind: str, call: Awaitable[Any]) -> None:
        try:
            await call
        except grpc.RpcError as error:
            self.record.hostile[kind, error.code().name] += 1
        else:
            self.record.hostile[kind, "OK"] += 1

    async def many_elements(self) -> None:
        """A small message of very many elements."""
        await self._raw("experiment", "RecordEvents", _empty_events(100_000), is_stream=True)
        tags = {f"t{number}": "" for number in range(20_000)}
        model = registry_pb2.RegisterModelRequest(model=registry_pb2.Model(model_id="many", tags=tags))
        await self._raw("registry", "RegisterModel", model.SerializeToString())
        reported = deployer_pb2.ReportPerformanceRequest(model_id="x" * 200_000)
        await self._raw("deployer", "ReportPerformance", reported.SerializeToString())

    async def unread_downloads(self) -> None:
        model_id, version, path = self.artifact
        request = registry_pb2.DownloadArtifactRequest(model_id=model_id, version=version, path=path)
        async with grpc.aio.insecure_channel(self.addresses["registry"]) as channel:
            calls = [RegistryServiceStub(channel).DownloadArtifact(request) for _ in range(40)]
            await until(self.stop, 3.0)
            for call in calls:
                call.cancel()
        self.record.hostile["unread download", "left"] += 1

    async def stalled_uploads(self) -> None:
        content = safetensors(random.randbytes(200_000))
        header = registry_pb2.UploadHeader(
            digest=digest_of(content), size_bytes=len(content), path="s.safetensors"
        )

        async def parts() -> AsyncIterator[registry_pb2.UploadArtifactRequest]:
            yield registry_pb2.UploadArtifactRequest(header=header)
            yield registry_pb2.UploadArtifactRequest(chunk=content[:1000])
            await until(self.stop, 3.0)

        async with grpc.aio.insecure_channel(self.addresses["registry"]) as channel:
            call = RegistryServiceStub(channel).UploadArtifact(parts())
            await until(self.stop, 2.0)
            call.cancel()
        self.record.hostile["stalled upload", "left"] += 1

    async def page_tokens(self) -> None:
        token = random.choice(["A" * 4000, "%00", "eyJhIjoxfQ==", "-1", "\u0000", "é" * 100, "../../etc"])
        for service, method, request in (
            ("registry", "ListModels", registry_pb2.ListModelsRequest(page_token=token)),
            ("trainer", "ListTrainingJobs", trainer_pb2.ListTrainingJobsRequest(page_token=token)),
            ("deployer", "ListDeployments", deployer_pb2.ListDeploymentsRequest(page_token=token)),
            ("experiment", "ListExperiments", experiment_pb2.ListExperimentsRequest(page_token=token)),
        ):
            await self._raw(service, method, request.SerializeToString())

    async def idle_watches(self) -> None:
        """Some hundred, held as long as the service lets them."""
        async with grpc.aio.insecure_channel(self.addresses["registry"]) as channel:
            stub = RegistryServiceStub(channel)

            async def watch() -> None:
                with contextlib.suppress(grpc.RpcError):
                    async for _ in stub.WatchModels(registry_pb2.WatchModelsRequest(model_id="nobody")):
                        pass

            watches = [asyncio.create_task(watch()) for _ in range(200)]
            await asyncio.wait(
                {asyncio.create_task(self.stop.wait()), *watches}, return_when="FIRST_COMPLETED"
            )
            for each in watches:
                each.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    async def slow_heads(self) -> None:
        """Connections that send the head of a request and never end it, and one that begins a large body."""
        url = httpx2.URL(self.endpoint)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
        beginnings = [head] * 30 + [head + b"content-length: 900000000\r\n\r\n" + b"{" * 1000] * 3
        async with contextlib.AsyncExitStack() as stack:
            for beginning in beginnings:
                try:
                    _, writer = await asyncio.open_connection(url.host, url.port)
                except OSError:
                    break
                stack.callback(writer.close)
                writer.write(beginning)
            await until(self.stop, 3.0)
        self.record.hostile["slow head", "left"] += 1

    async def long_prompts(self) -> None:
        await self._post("long prompt", _question("oil " * 500_000))

    async def no_text(self) -> None:
        for body in (
            _question("emoji \\ud83d"),
            b'{"model": "\\ud83d", "messages": []}',
            b"\xff\xfe",
            b"{" * 100_000,
            b"[" * 100_000,
        ):
            await self._post("no text", body)

    async def _post(self, kind: str, body: bytes) -> None:
        async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
            try:
                answer = await client.post(
                    f"{self.endpoint}/chat/completions",
                    content=body,
                    headers={"content-type": "application/json"},
                )
            except httpx2.TransportError as error:
                self.record.hostile[kind, type(error).__name__] += 1
            else:
                self.record.hostile[kind, str(answer.status_code)] += 1

    async def abandoned_validations(self) -> None:
        request = trainer_pb2.ValidateDatasetRequest(dataset_path="builtin:automotive")
        async with grpc.aio.insecure_channel(self.addresses["trainer"]) as channel:
            await self._remember(
                "abandoned validation",
                TrainerServiceStub(channel).ValidateDataset(request, timeout=random.uniform(0.01, 0.1)),
            )


def _question(text: str) -> bytes:
    """text: as it stands inside a JSON string."""
    return f'{{"model": "advisor", "messages": [{{"role": "user", "content": "{text}"}}], "max_tokens": 4}}'.encode()


def _empty_events(count: int) -> bytes:
    """A RecordEventsRequest of so many empty events: two bytes each."""
    rows = b"\x0a\x00" * count
    return b"\x0a\x01t" + b"\x12" + _varint(len(rows)) + rows


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
