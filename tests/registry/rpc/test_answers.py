"""Answers from the cache are what a read would give: held against other servers' writes and other reads."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import CollectorRegistry
from sqlalchemy import event

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate
from neuroweaver.mesh.database.revision import Revisions
from neuroweaver.mesh.server.serve import running
from neuroweaver.mesh.wire.channel import channel
from neuroweaver.registry.__main__ import service
from neuroweaver.registry.rpc import releases
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1.registry_pb2_grpc import RegistryServiceStub
from registry.calls import create, register, safetensors, upload
from registry.faults import client, servers


class Untold(Revisions):
    """With it every read is a read."""

    async def of(self, key: str) -> None:
        return

    async def close(self) -> None:
        return


class Uncached(Database):
    def revisions(self, statement: str) -> Revisions:
        return Untold()


@asynccontextmanager
async def serving(
    url: str, home: Path, kind: type[Database] = Database, **changes: Any
) -> AsyncIterator[tuple[Any, Database]]:
    """changes: of the service."""
    settings = RegistrySettings(
        home=home, port=0, metrics_port=0, database_url=url, drain_s=0.0, webhook_private=True
    )
    database = kind(url, schema="registry")
    await migrate(database, "neuroweaver.registry")
    served = replace(service(database, settings), **changes)
    async with (
        running(served, settings, registry=CollectorRegistry()) as server,
        channel(server.address) as opened,
    ):
        yield RegistryServiceStub(opened), database


async def get(registry: Any, version: str) -> pb.ModelVersion:
    return await registry.GetModelVersion(pb.GetModelVersionRequest(model_id="advisor", version=version))


async def resolve(registry: Any, alias: str = "candidate", at: datetime | None = None) -> pb.ModelVersion:
    request = pb.ResolveAliasRequest(model_id="advisor", alias=alias)
    if at:
        request.at.CopyFrom(timestamp(at))
    return await registry.ResolveAlias(request)


def timestamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


async def point(registry: Any, version: str, alias: str = "candidate") -> pb.Alias:
    return await registry.SetAlias(pb.SetAliasRequest(model_id="advisor", alias=alias, version=version))


READS: dict[str, Callable[[Any], Any]] = {
    "1.0.0": lambda registry: get(registry, "1.0.0"),
    "1.1.0": lambda registry: get(registry, "1.1.0"),
    "latest": lambda registry: get(registry, "latest"),
    "^1": lambda registry: get(registry, "^1"),
    "@candidate": lambda registry: get(registry, "@candidate"),
    "candidate": resolve,
}


async def all_reads(registry: Any) -> dict[str, pb.ModelVersion | grpc.StatusCode]:
    found: dict[str, pb.ModelVersion | grpc.StatusCode] = {}
    for name, read in READS.items():
        try:
            found[name] = await read(registry)
        except grpc.RpcError as error:
            found[name] = error.code()
    return found


async def test_what_was_read_before_is_not_read_again(database_url, tmp_path):
    statements: list[str] = []
    # Without the cleanup, which locks an SQLite file for a moment: then nobody can tell whether it was written to.
    async with serving(database_url, tmp_path, background=()) as (registry, database):
        event.listen(
            database._reader.sync_engine,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, *_: statements.append(statement),
        )
        await register(registry)
        await create(registry, "1.0.0")
        await point(registry, "1.0.0")
        first = [await get(registry, "latest"), await resolve(registry)]
        statements.clear()

        assert [await get(registry, "latest"), await resolve(registry)] == first
        assert not [statement for statement in statements if "versions" in statement]


async def test_every_change_is_seen_by_a_server_that_did_not_make_it(database_url, tmp_path):
    async with (
        serving(database_url, tmp_path) as (other, _),
        serving(database_url, tmp_path) as (registry, _),
        serving(database_url, tmp_path, Uncached) as (truth, _),
    ):
        seen: list[dict[str, Any]] = []

        async def after(change: Any) -> None:
            await change
            for _ in range(2):
                found = await all_reads(registry)
                assert found == await all_reads(truth)
            seen.append(found)

        file = await upload(other, safetensors())
        await after(register(other))
        await after(create(other, "1.0.0", artifacts=[file], state=pb.VERSION_STATE_VALIDATED))
        await after(point(other, "1.0.0"))
        metrics = {"loss": pb.Metric(value=1.0)}
        await after(
            other.UpdateMetrics(pb.UpdateMetricsRequest(model_id="advisor", version="1.0.0", metrics=metrics))
        )
        state = pb.UpdateVersionStateRequest(
            model_id="advisor", version="1.0.0", state=pb.VERSION_STATE_DEPRECATED
        )
        await after(other.UpdateVersionState(state))
        bump = pb.BumpModelVersionRequest(model_id="advisor", level=pb.BUMP_LEVEL_MINOR)
        await after(other.BumpModelVersion(bump))
        await after(point(other, "1.1.0"))
        rollback = pb.RollbackModelRequest(model_id="advisor", to_version="1.0.0", reason="worse")
        await after(other.RollbackModel(rollback))
        await after(other.DeleteAlias(pb.DeleteAliasRequest(model_id="advisor", alias="candidate")))
        await after(
            other.DeleteModelVersion(pb.DeleteModelVersionRequest(model_id="advisor", version="1.0.0"))
        )
        await after(other.DeleteModel(pb.DeleteModelRequest(model_id="advisor")))

    assert all(before != then for before, then in itertools.pairwise(seen))
    assert set(seen[-1].values()) == {grpc.StatusCode.NOT_FOUND}


@pytest.mark.parametrize("writes", [30])
async def test_nobody_reads_what_was_before_an_acknowledged_write(database_url, tmp_path, writes):
    """Two processes, writers and readers at both."""
    acknowledged = dict.fromkeys(("a", "b", "c"), 0)

    async def write(address: str, name: str) -> None:
        async with client(address) as registry:
            for number in range(1, writes + 1):
                metrics = {name: pb.Metric(value=number)}
                request = pb.UpdateMetricsRequest(model_id="advisor", version="1.0.0", metrics=metrics)
                await registry.UpdateMetrics(request)
                acknowledged[name] = number

    async def read(address: str, how: Callable[[Any], Any]) -> int:
        last = dict(acknowledged)
        async with client(address) as registry:
            for reads in itertools.count(1):
                floor = {name: max(last[name], acknowledged[name]) for name in acknowledged}
                is_last = set(floor.values()) == {writes}
                answer = await how(registry)
                last = {name: int(answer.metrics[name].value) for name in acknowledged}
                assert all(last[name] >= floor[name] for name in floor), (last, floor)
                if is_last:
                    return reads
        raise AssertionError

    with servers(tmp_path, database_url, 2) as started:
        for server in started:
            await server.ready()
        first, second = (server.address for server in started)
        async with client(first) as registry:
            await register(registry)
            await create(registry, "1.0.0")
            await point(registry, "1.0.0")
        readers = [(address, READS[how]) for address in (first, second) for how in ("latest", "candidate")]
        async with asyncio.TaskGroup() as group:
            reading = [group.create_task(read(*reader)) for reader in readers]
            for address, name in ((first, "a"), (second, "b"), (second, "c")):
                group.create_task(write(address, name))
        assert all(task.result() > 1 for task in reading)


async def test_a_moment_that_was_now_at_first_is_looked_up_in_the_past_later_on(
    database_url, tmp_path, monkeypatch
):
    async with serving(database_url, tmp_path) as (registry, _):
        await register(registry)
        for version in ("1.0.0", "1.1.0"):
            await create(registry, version)
        await point(registry, "1.0.0")
        at = datetime.now(UTC)
        monkeypatch.setattr(releases, "utc_now", lambda: at - timedelta(seconds=30))
        assert (await resolve(registry, at=at)).version == "1.0.0"
        await point(registry, "1.1.0")
        assert (await resolve(registry, at=at)).version == "1.1.0"

        # Nothing was written since; yet the same request asks for something else now.
        monkeypatch.undo()
        for _ in range(2):
            assert (await resolve(registry, at=at)).version == "1.0.0"
            assert (await resolve(registry)).version == "1.1.0"


async def test_the_past_of_a_hidden_model_stays_known(database_url, tmp_path):
    async with serving(database_url, tmp_path) as (registry, _):
        await register(registry)
        await create(registry, "1.0.0")
        alias = await point(registry, "1.0.0")
        at = alias.update_time.ToDatetime(UTC)
        before = await resolve(registry, at=at)
        await registry.DeleteAlias(pb.DeleteAliasRequest(model_id="advisor", alias="candidate"))
        await registry.DeleteModel(pb.DeleteModelRequest(model_id="advisor"))

        for _ in range(2):
            assert (await resolve(registry, at=at)).version == before.version
            with pytest.raises(grpc.RpcError) as refused:
                await resolve(registry)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
