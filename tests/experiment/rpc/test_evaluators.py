"""Two processes of the service over one database: what one commits, the other hears of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from google.protobuf import struct_pb2

from experiment.ingesting import PROJECT, Intake, exposure, intake, spec
from neuroweaver.experiment.control import evaluators as control
from neuroweaver.experiment.control.evaluators import Assigner, Evaluators
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.wire.errors import NotFound
from neuroweaver.v1 import experiment_pb2 as pb


@asynccontextmanager
async def two(database_url: str) -> AsyncIterator[tuple[Intake, Store]]:
    """One that writes, and the store of another, which hears of it."""
    async with intake(database_url) as writing:
        database = Database(database_url, schema="experiment")
        store = Store(database)
        hearing = asyncio.create_task(store.topics.run())
        yield writing, store
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        await database.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_experiment_of_another_process_is_assigned_from(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_PERIOD_S", 0.01)
    async with two(database_url) as (writing, store):
        evaluators = Evaluators(store)
        await evaluators.of(PROJECT, "t")
        with pytest.raises(NotFound):
            await evaluators.of(PROJECT, "later")
        fresh = asyncio.create_task(evaluators.keep_fresh())
        await writing.add(spec(), "later")
        await until(lambda: "later" in evaluators._projects[PROJECT])
        fresh.cancel()


async def test_evaluators_read_nothing_while_nothing_changes(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_PERIOD_S", 0.001)
    async with intake(database_url) as opened:
        evaluators = Evaluators(opened.store)
        await evaluators.of(PROJECT, "t")
        reads = 0

        async def counted(_project: str) -> None:
            nonlocal reads
            reads += 1

        monkeypatch.setattr(evaluators, "refresh", counted)
        fresh = asyncio.create_task(evaluators.keep_fresh())
        for _ in range(50):
            await asyncio.sleep(0.001)
        fresh.cancel()
        assert reads == 0


async def test_events_that_another_process_took_in_have_results_computed_anew(database_url: str) -> None:
    async with two(database_url) as (writing, store):
        inputs = store.inputs_signal(PROJECT, "t")
        await until(lambda: inputs.count > 0)  # it has begun to listen
        before = inputs.count
        await writing.take(exposure("e1", "u1", "a"))
        await until(lambda: inputs.count > before)


def test_attributes_that_no_rule_names_are_not_looked_at() -> None:
    class Counted(dict[str, struct_pb2.Value]):
        looked_at: ClassVar[list[str]] = []

        def __getitem__(self, name: str) -> struct_pb2.Value:
            self.looked_at.append(name)
            return super().__getitem__(name)

    condition = pb.TargetingCondition(attribute="city", operator=pb.TARGETING_OPERATOR_EXISTS)
    variant = pb.ExperimentVariant(variant_id="control")
    config = pb.AssignmentConfig(
        test_id="t",
        state=pb.EXPERIMENT_STATE_RUNNING,
        control_variant_id="control",
        variants=[variant],
        targeting=[pb.TargetingRule(conditions=[condition])],
    )
    attributes = Counted({name: struct_pb2.Value(string_value="x") for name in ("city", "size")})
    Assigner(config, 1).assign("u", attributes)
    assert Counted.looked_at == ["city"]
