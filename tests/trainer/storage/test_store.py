from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.wire.errors import AlreadyExists
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.trainer.domain.job import Job, State
from neuroweaver.trainer.rpc.jobs import cancel, resume
from neuroweaver.trainer.storage import tables
from neuroweaver.trainer.storage.jobs import Writer
from neuroweaver.trainer.storage.store import Store
from neuroweaver.v1 import trainer_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ADA = ChangeOrigin("default", "ada", "too slow", "0" * 32)
GRACE = ChangeOrigin("default", "grace")


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database, clock=lambda: NOW)


async def add(
    store: Store, job_id: str, *, after: timedelta = timedelta(), origin: ChangeOrigin = ADA
) -> None:
    config = pb.TrainingConfig(model_name="advisor")

    async def work(jobs: Writer) -> None:
        job = Job(
            job_id=job_id,
            project=jobs.project,
            config=config,
            dataset_digest="",
            create_time=jobs.now + after,
        )
        await jobs.add(job)

    await store.transact(origin, work)


async def test_the_migrations_lead_to_the_tables_that_the_code_expects(database: Database) -> None:
    def difference(connection):
        options = {
            "include_object": lambda _item, name, kind, *_: (kind, name) != ("table", "alembic_version")
        }
        return compare_metadata(MigrationContext.configure(connection, opts=options), tables.METADATA)

    async with database.read() as connection:
        assert await connection.run_sync(difference) == []


async def test_who_started_cancelled_and_resumed_a_job_is_kept_with_the_reason(
    store: Store, database: Database
) -> None:
    await add(store, "job")
    await store.transact(GRACE, lambda jobs: cancel(jobs, "job"))
    await store.transact(ADA, lambda jobs: cancel(jobs, "job"))  # has ended: nothing changes
    await store.transact(ADA, lambda jobs: resume(jobs, "job"))

    async with database.read() as connection:
        rows = (await connection.execute(select(tables.CHANGES).order_by(tables.CHANGES.c.sequence))).all()
    assert [(row.sequence, row.action, row.actor, row.reason, row.trace_id) for row in rows] == [
        (0, "job.started", "ada", "too slow", "0" * 32),
        (1, "job.cancelled", "grace", "", ""),
        (2, "job.resumed", "ada", "too slow", "0" * 32),
    ]
    assert {row.time for row in rows} == {NOW}


async def test_the_job_that_waited_longest_is_started_in_whichever_project_it_is(store: Store) -> None:
    await add(store, "late", after=timedelta(seconds=1))
    await add(store, "early", origin=ChangeOrigin("other", "ada"))

    first = await store.start_next(slots=2, secret_digest="")
    second = await store.start_next(slots=2, secret_digest="")

    assert first is not None
    assert second is not None
    assert [(job.project, job.job_id, job.state) for job in (first, second)] == [
        ("other", "early", State.JOB_STATE_RUNNING),
        ("default", "late", State.JOB_STATE_RUNNING),
    ]


async def test_no_job_is_started_while_every_slot_is_taken(store: Store) -> None:
    await add(store, "first")
    await add(store, "second")

    assert await store.start_next(slots=1, secret_digest="") is not None
    assert await store.start_next(slots=1, secret_digest="") is None


async def test_a_job_of_another_project_cannot_take_the_same_folder(store: Store) -> None:
    await add(store, "job")
    with pytest.raises(AlreadyExists, match="output folder"):
        await add(store, "job", origin=ChangeOrigin("other", "ada"))


async def test_a_watch_hears_of_a_commit_and_not_of_what_was_rolled_back(store: Store) -> None:
    await add(store, "job")
    signal = store.signal(("default", "job"))

    async def fail(jobs: Writer) -> None:
        await cancel(jobs, "job")
        raise AlreadyExists("training job", "job")

    with pytest.raises(AlreadyExists):
        await store.transact(ADA, fail)
    assert signal.count == 0

    await store.transact(ADA, lambda jobs: cancel(jobs, "job"))
    assert signal.count == 1
