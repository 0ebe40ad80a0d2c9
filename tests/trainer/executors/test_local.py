from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from neuroweaver.trainer.domain.job import Job
from neuroweaver.trainer.executors import local
from neuroweaver.trainer.executors.executor import LOG_NAME
from neuroweaver.v1 import trainer_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "cause"),
    [
        ("Traceback (most recent call last):\n  File x\nKeyError: 'a'\n", "KeyError: 'a'"),
        ("torch.OutOfMemoryError: no room\nresource_tracker: 3 leaked\n", "torch.OutOfMemoryError: no room"),
        (
            "Fatal Python error: Segmentation fault\n\nThread 1:\n  File x\n",
            "Fatal Python error: Segmentation fault",
        ),
        ('{"level": "info", "message": "KeyError: of another"}\n', ""),
        ("", ""),
    ],
)
def test_the_last_error_is_that_of_this_attempt(tmp_path, written, cause):
    log = tmp_path / LOG_NAME
    earlier = "ValueError: of an earlier attempt\n"
    log.write_text(earlier + written)
    assert local.last_error(log, len(earlier)) == cause


async def test_a_worker_that_cannot_begin_says_why_without_secrets(tmp_path):
    environ = {"NEUROWEAVER_TRAINER_PORT": "hunter2-hunter2", "A_PASSWORD": "hunter2-hunter2"}
    job = Job(job_id="job", project="default", config=pb.TrainingConfig(), dataset_digest="", create_time=NOW)
    worker = await local.LocalExecutor(environ).start(job, tmp_path / "job")
    async with asyncio.timeout(300):
        ended = await worker.wait()
    assert ended.status == 1
    assert ended.cause.startswith("neuroweaver.mesh.wire.environment.SettingsError: ")
    assert "[redacted]" in ended.cause
    assert "hunter2" not in ended.cause
