from __future__ import annotations

from unittest.mock import Mock

import pytest

from neuroweaver.trainer.domain.offers import EMBEDDED_JUDGE
from neuroweaver.trainer.executors import local
from neuroweaver.trainer.executors.executor import LOG_NAME, Exit
from neuroweaver.trainer.executors.local import LocalExecutor
from neuroweaver.v1 import trainer_pb2 as pb

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
