from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from unittest.mock import Mock

import pytest

from neuroweaver.trainer.domain.job import Job
from neuroweaver.trainer.domain.offers import EMBEDDED_JUDGE
from neuroweaver.trainer.executors import local
from neuroweaver.trainer.executors.executor import LOG_NAME, Exit
from neuroweaver.trainer.executors.local import LocalExecutor
from neuroweaver.v1 import trainer_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Mock(job_id="j1", lease_token=1, trace_parent="")


async def test_the_secret_reaches_the_worker_and_stands_in_no_argument_and_no_variable(tmp_path, monkeypatch):
    tell = "read secret; echo \"got $secret\"; tr '\\0' '\\n' < /proc/$$/environ; tr '\\0' ' ' < /proc/$$/cmdline"
    monkeypatch.setattr(local, "_COMMAND", ("sh", "-c", tell))
    worker = await LocalExecutor({"PATH": "/usr/bin:/bin"}).start(JOB, "s3cret", tmp_path)
    assert await worker.wait() == Exit(0)
    log = (tmp_path / LOG_NAME).read_text()
    assert "got s3cret" in log
    assert "NEUROWEAVER_JOB_ID=j1" in log
    assert log.count("s3cret") == 1


async def test_a_worker_that_a_signal_ends_says_which(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_COMMAND", ("sh", "-c", "kill -SEGV $$"))
    worker = await LocalExecutor({"PATH": "/usr/bin:/bin"}).start(JOB, "s3cret", tmp_path)
    assert await worker.wait() == Exit(-11)


@pytest.mark.parametrize(("judge", "has_key"), [("gpt-4o-mini", True), (EMBEDDED_JUDGE, False)])
async def test_the_judges_key_is_given_to_workers_that_ask_it(tmp_path, monkeypatch, judge, has_key):
    monkeypatch.setattr(local, "_COMMAND", ("sh", "-c", "env"))
    keys = {"OPENAI_API_KEY": "sk-1", "NEUROWEAVER_DATABASE_URL": "postgresql://u:p@h/d", "HF_TOKEN": "hf"}
    job = Mock(job_id="j1", lease_token=1, trace_parent="", config=pb.TrainingConfig(feedback_model=judge))
    worker = await LocalExecutor({"PATH": "/usr/bin:/bin"} | keys).start(job, "s3cret", tmp_path)
    await worker.wait()
    log = (tmp_path / LOG_NAME).read_text()
    assert ("sk-1" in log) is has_key
    assert "HF_TOKEN=hf" in log
    assert "postgresql" not in log


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
    worker = await LocalExecutor(environ).start(job, "s3cret", tmp_path / "job")
    async with asyncio.timeout(300):
        ended = await worker.wait()
    assert ended.status == 1
    assert ended.cause.startswith("neuroweaver.mesh.wire.environment.SettingsError: ")
    assert "[redacted]" in ended.cause
    assert "hunter2" not in ended.cause
