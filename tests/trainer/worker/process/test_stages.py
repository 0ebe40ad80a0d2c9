from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from neuroweaver.mesh.machine.files import read_json, write_json
from neuroweaver.trainer.worker.process.monitor import Stopped
from neuroweaver.trainer.worker.process.stages import Stages, as_message, as_result
from neuroweaver.v1 import trainer_pb2 as pb
from trainer.recorder import Events


@pytest.fixture
def events():
    return Events()


@pytest.fixture
def stages(tmp_path, events):
    return Stages(tmp_path, events, threading.Event())


def never(_monitor):
    raise AssertionError("run again")


def test_a_finished_stage_is_reused_and_its_numbers_are_shown_again(stages, events):
    first = stages.run(pb.STAGE_SFT, "works", lambda _: {"loss": 1.5, "name": "x", "is_good": True})
    assert stages.run(pb.STAGE_SFT, "works", never) == first
    started, finished, again = events.seen
    assert started.stage_started.description == "works"
    assert (finished.stage_finished.is_reused, again.stage_finished.is_reused) == (False, True)
    assert finished.stage_finished.metrics == again.stage_finished.metrics
    assert finished.stage_finished.metrics.keys() == {"loss", "seconds"}


def test_a_stage_that_every_attempt_runs_adds_up_its_seconds(stages, tmp_path):
    write_json(tmp_path / "preparing.json", {"seconds": 100.0})
    result = stages.run(pb.STAGE_PREPARING, "reads", lambda _: {"rows": 3}, again=True)
    assert result["rows"] == 3
    assert result["seconds"] > 100.0
    assert stages.seconds() == {"PREPARING": result["seconds"]}


def test_a_stage_that_fails_leaves_no_record_and_is_the_current_one(stages, tmp_path):
    with pytest.raises(AssertionError):
        stages.run(pb.STAGE_PPO, "works", never)
    assert read_json(tmp_path / "ppo.json") is None
    assert stages.current == pb.STAGE_PPO


def test_a_stopped_job_begins_no_stage(tmp_path, events):
    must_stop = threading.Event()
    must_stop.set()
    with pytest.raises(Stopped):
        Stages(tmp_path, events, must_stop).run(pb.STAGE_SFT, "works", never)
    assert events.seen == []


def test_progress_tells_rate_and_time_left_and_leaves_out_what_is_no_number(stages, events):
    def work(monitor):
        monitor.report(step=5, total_steps=5, tokens=10, metrics={"loss": 2.0, "rate": 3.0, "kl": math.nan})
        return {}

    stages.run(pb.STAGE_SFT, "works", work)
    progress = events.seen[1].progress
    assert (progress.step, progress.total_steps, progress.loss, progress.kl) == (5, 5, 2.0, 0.0)
    assert dict(progress.metrics) == {"rate": 3.0}
    assert progress.tokens_per_second > 0


def test_an_outcome_becomes_a_result_and_a_result_a_message():
    @dataclass
    class Outcome:
        folder: Path
        steps: int
        kl_last: float

    result = as_result(Outcome(Path("/job/ppo/adapter"), 4, 0.5), Path("/job"))
    assert result == {"folder": "ppo/adapter", "steps": 4, "kl_last": 0.5}
    message = as_message(pb.PolicyOptimization, result, stop_reason="done")
    assert message == pb.PolicyOptimization(steps=4, kl_last=0.5, stop_reason="done")
