"""What handlers of RPCs that change something build on, over a store as small as one can be."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import AsyncConnection

from neuroweaver.mesh.auth.caller import Caller
from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.handlers import mutations
from neuroweaver.mesh.handlers.mutations import Mutations, origin_of
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.v1 import registry_pb2 as pb

METADATA = MetaData()
ANSWERS = idempotency.table(METADATA)


@dataclass
class Transaction:
    connection: AsyncConnection
    project: str


class Counter:
    """Counts how often it was told to, which is what a retry must not do again."""

    def __init__(self, database: Database) -> None:
        self.count = 0
        self.origins: list[ChangeOrigin] = []
        self._database = database
        self._mutations = Mutations(self, pb.DESCRIPTOR.services_by_name["RegistryService"])

    @asynccontextmanager
    async def read(self, project: str):
        async with self._database.read() as connection:
            yield Transaction(connection, project)

    async def transact(self, origin: ChangeOrigin, work):
        self.origins.append(origin)
        return await self._database.transact(lambda connection: work(Transaction(connection, origin.project)))

    async def increment(self, request_id: str, alias: str = "production", project: str = "default") -> int:
        async def operation(transaction: Transaction) -> pb.Alias:
            assert transaction.project == project
            self.count += 1
            return pb.Alias(version=str(self.count))

        answer = await self._mutations.run(asked(request_id, alias), Caller(project, "ada"), operation)
        return int(answer.version)

    async def answered(self, request_id: str, alias: str = "production", project: str = "default"):
        return await self._mutations.answered(asked(request_id, alias), Caller(project, "ada"))


def asked(request_id: str, alias: str) -> pb.SetAliasRequest:
    return pb.SetAliasRequest(request_id=request_id, alias=alias, reason="because")


@pytest.fixture
async def counter(database_url, monkeypatch):
    monkeypatch.setattr(mutations, "caller_of", lambda context: context)
    opened = Database(database_url, schema="testing")
    async with opened.alone() as connection:
        if not opened.is_sqlite:
            await connection.execute(text("CREATE SCHEMA testing"))
        await connection.run_sync(METADATA.create_all)
    yield Counter(opened)
    await opened.close()


async def test_a_retry_reads_the_first_answer(counter):
    assert await counter.answered("r") is None
    assert [await counter.increment("r") for _ in range(3)] == [1, 1, 1]
    assert (await counter.answered("r")).version == "1"
    assert counter.count == 1


async def test_without_a_request_id_every_call_is_a_new_one(counter):
    assert [await counter.increment("") for _ in range(2)] == [1, 2]
    assert await counter.answered("") is None


async def test_projects_do_not_read_each_others_answers(counter):
    assert await counter.increment("r") == 1
    assert await counter.answered("r", project="other") is None
    assert await counter.increment("r", project="other") == 2


async def test_a_request_id_of_another_request_is_refused(counter):
    await counter.increment("r")
    for call in (counter.increment, counter.answered):
        with pytest.raises(InvalidArgument, match="request_id"):
            await call("r", alias="staging")
    assert counter.count == 1


async def test_a_request_id_with_control_characters_is_refused(counter):
    for call in (counter.increment, counter.answered):
        with pytest.raises(InvalidArgument, match="request_id"):
            await call("r\0")
    assert counter.count == 0


async def test_an_answer_is_kept_under_the_name_of_its_method(counter):
    await counter.increment("r")
    async with counter.read("default") as transaction:
        assert (await transaction.connection.execute(ANSWERS.select())).one().method == "SetAlias"


async def test_a_change_has_an_origin(counter):
    await counter.increment("r", project="other")
    assert counter.origins == [ChangeOrigin("other", "ada", "because")]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.SetAliasRequest(reason="a\0b"), "reason"),
        (pb.BumpModelVersionRequest(description="a\0b"), "description"),
    ],
)
def test_a_reason_with_control_characters_is_refused(request_, field):
    with pytest.raises(InvalidArgument) as refused:
        origin_of(request_, None, field)
    assert refused.value.violations[0][0] == field


def test_methods_that_share_a_request_type_are_refused():
    file = FileDescriptorProto(name="shared.proto", package="testing", syntax="proto3")
    file.message_type.add(name="Ask")
    methods = [
        MethodDescriptorProto(name=name, input_type=".testing.Ask", output_type=".testing.Ask")
        for name in "AB"
    ]
    file.service.add(name="Shared", method=methods)
    pool = DescriptorPool()
    pool.Add(file)
    with pytest.raises(ValueError, match=r"testing\.Shared"):
        Mutations(None, pool.FindServiceByName("testing.Shared"))
