from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.server.serve import running
from neuroweaver.mesh.wire.clock import utc_now
from neuroweaver.mesh.wire.errors import OutOfRange
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.trainer.__main__ import service
from neuroweaver.trainer.control.housekeeping import DROPPED, chores, drop_folders
from neuroweaver.trainer.domain.job import Job, State
from neuroweaver.trainer.rpc import watches
from neuroweaver.trainer.settings import TrainerSettings
from neuroweaver.trainer.storage import retention
from neuroweaver.trainer.storage.jobs import Writer
from neuroweaver.trainer.storage.store import Store
from neuroweaver.v1 import trainer_pb2 as pb

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
KEPT = 90 * DAY
ORIGIN = ChangeOrigin("default", "ada")


class Clock:
    def __init__(self) -> None:
        self.now = BEGIN

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> Store:
    return Store(database, clock=clock)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


async def ran(
    store: Store,
    folder: Path,
    job_id: str,
    state: State.ValueType | None = State.JOB_STATE_FAILED,
    output_dir: str = "",
) -> None:
    """A job with a step, a log line and a checkpoint, which ended in a state; None: which runs."""
    failure = pb.Failure(reason="OUT_OF_MEMORY", is_resumable=True)

    async def work(jobs: Writer) -> None:
        config = pb.TrainingConfig(model_name="advisor", output_dir=output_dir)
        job = Job(job_id=job_id, project=jobs.project, config=config, dataset_digest="", create_time=jobs.now)
        job = (await jobs.add(job)).start(jobs.now, "digest")
        job = await jobs.append_log(job, pb.LogLine(message="loading"))
        job = job.observe(pb.TrainingEvent(progress=pb.Progress(step=1)), jobs.now)
        if state is not None:
            finished = pb.JobFinished(state=state, failure=failure)
            job = job.observe(pb.TrainingEvent(finished=finished), jobs.now)
        checkpoint = folder / job.output_dir / "sft" / "checkpoint-10"
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights").write_bytes(b"weights")
        await jobs.save(job)

    await store.transact(ORIGIN, work)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def clean(store: Store, folder: Path, clock: Clock) -> dict[str, int]:
    return {name: await chore() for name, chore in chores(store, folder, clock.now - KEPT).items()}


async def test_a_job_that_ended_long_ago_keeps_its_last_event_alone(
    store: Store, folder: Path, clock: Clock
) -> None:
    await ran(store, folder, "old")
    clock.now += KEPT + DAY

    assert await clean(store, folder, clock) == {"events": 2, "log lines": 1, "job folders": 1}

    assert names_in(folder) == []
    async with store.read("default") as jobs:
        assert (await jobs.job("old")).failure == pb.Failure(reason="OUT_OF_MEMORY", is_resumable=True)
    events = [event async for event in watches.events(store, "default", "old", 0)]
    assert [(event.sequence, event.WhichOneof("event")) for event in events] == [(3, "finished")]
    assert [line async for line in watches.logs(store, "default", "old", 0, is_followed=True)] == []
    assert await clean(store, folder, clock) == {"events": 0, "log lines": 0, "job folders": 0}


async def test_a_watch_from_before_the_oldest_event_kept_is_out_of_range(
    store: Store, folder: Path, clock: Clock
) -> None:
    await ran(store, folder, "old")
    clock.now += KEPT + DAY
    await clean(store, folder, clock)

    with pytest.raises(OutOfRange, match="no longer kept"):
        await anext(watches.events(store, "default", "old", 1))


@pytest.mark.parametrize("state", [State.JOB_STATE_SUCCEEDED, State.JOB_STATE_FAILED, None])
async def test_a_job_that_runs_or_ended_lately_keeps_everything(
    state: State.ValueType | None, store: Store, folder: Path, clock: Clock
) -> None:
    await ran(store, folder, "job", state)
    clock.now += KEPT if state is not None else 10 * KEPT

    assert await clean(store, folder, clock) == {"events": 0, "log lines": 0, "job folders": 0}
    assert (folder / "job" / "sft" / "checkpoint-10" / "weights").is_file()


async def test_what_other_jobs_and_other_people_put_beside_it_stays(
    store: Store, folder: Path, clock: Clock
) -> None:
    await ran(store, folder, "old")
    (folder / "notes").mkdir()
    clock.now += KEPT + DAY
    await ran(store, folder, "young")

    await clean(store, folder, clock)

    assert names_in(folder) == ["notes", "young"]
    assert [event.sequence async for event in watches.events(store, "default", "young", 0)] == [1, 2, 3]


async def test_a_folder_waits_for_a_younger_job_inside_it(store: Store, folder: Path, clock: Clock) -> None:
    await ran(store, folder, "outer", output_dir="team")
    clock.now += DAY
    await ran(store, folder, "inner", output_dir="team/inner")
    clock.now += KEPT

    assert await drop_folders(store, folder, clock.now - KEPT) == 0
    assert (folder / "team" / "sft").is_dir()

    clock.now += DAY
    assert await drop_folders(store, folder, clock.now - KEPT) == 2
    assert not (folder / "team").exists()


async def test_a_job_that_was_resumed_keeps_its_folder(store: Store, folder: Path, clock: Clock) -> None:
    await ran(store, folder, "job")
    clock.now += KEPT + DAY
    before = clock.now - KEPT
    async with store.database.read() as connection:
        assert await retention.old_folders(connection, before) == ["job"]

    async def resume(jobs: Writer) -> None:
        await jobs.save((await jobs.job("job")).resume(jobs.now))

    await store.transact(ORIGIN, resume)

    async def act() -> None:
        raise AssertionError("the job can run")

    drop = partial(retention.while_ended, output_dir="job", before=before, act=act)
    assert not await store.database.transact(drop)


async def test_what_a_crash_left_half_deleted_is_deleted_at_the_next_cleanup(
    store: Store, folder: Path, clock: Clock
) -> None:
    (folder / DROPPED / "old" / "sft").mkdir(parents=True)
    await clean(store, folder, clock)
    assert not (folder / DROPPED).exists()


async def test_the_trainer_cleans_up_while_it_runs(
    database_url: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainerSettings(
        home=tmp_path,
        port=0,
        metrics_port=0,
        database_url=database_url,
        data_folder=tmp_path / "data",
        drain_s=0.0,
        days_kept=10,
        addresses={"trainer": "127.0.0.1:1", "registry": "127.0.0.1:1"},
    )
    folder = tmp_path / "jobs"
    for job_id, days in (("old", 11), ("young", 9)):
        await ran(Store(database, clock=lambda days=days: utc_now() - days * DAY), folder, job_id)
    is_done = asyncio.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "cleaned" and vars(record)["what"] == "job folders":
                is_done.set()

    handler, log = Handler(), logging.getLogger("neuroweaver.trainer")
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "level", logging.INFO)
    async with (
        running(service(database, settings), settings, registry=CollectorRegistry()),
        asyncio.timeout(120),
    ):
        await is_done.wait()
    assert names_in(folder) == ["young"]
