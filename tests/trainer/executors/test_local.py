from __future__ import annotations

from unittest.mock import Mock

from neuroweaver.trainer.executors import local
from neuroweaver.trainer.executors.executor import LOG_NAME, Exit
from neuroweaver.trainer.executors.local import LocalExecutor

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
