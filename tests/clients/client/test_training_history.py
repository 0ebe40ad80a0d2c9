from __future__ import annotations

from clients import scripted
from neuroweaver.client.training_history import History, stage_title, state_name
from neuroweaver.v1 import trainer_pb2

SFT = trainer_pb2.STAGE_SFT


def test_a_whole_job_becomes_stages_with_curves_and_a_result():
    history = History.of(scripted.successful())

    steps, losses = history.stages[SFT].curve("loss")
    assert steps == list(range(1, 53))
    assert losses[0] > losses[-1]
    assert history.stages[SFT].duration_s == 96.2
    assert all(stage.is_finished for stage in history.stages.values())
    assert history.result is not None
    assert history.result.version == "1.0.0"
    assert history.is_ended


def test_a_metric_that_was_not_reported_has_an_empty_curve():
    history = History.of(scripted.successful())

    assert history.stages[SFT].curve("kl") == ([], [])
    assert len(history.stages[trainer_pb2.STAGE_PPO].curve("clip_fraction")[1]) == 24


def test_steps_after_the_point_that_a_resume_goes_back_to_are_forgotten():
    script = scripted.Script()
    script.add(stage_started=trainer_pb2.StageStarted(stage=SFT))
    for step in range(1, 6):
        script.add(progress=trainer_pb2.Progress(stage=SFT, step=step, loss=step))
    script.add(rewound=trainer_pb2.Rewound(stage=SFT, step=2))
    script.add(progress=trainer_pb2.Progress(stage=SFT, step=3, loss=30.0))

    assert History.of(script.events).stages[SFT].curve("loss") == ([1, 2, 3], [1.0, 2.0, 30.0])


def test_a_resumed_job_forgets_how_its_first_attempt_ended():
    script = scripted.Script()
    script.events = scripted.failed()
    failed = History.of(script.events)
    assert failed.failure is not None
    script.state("FAILED", "RUNNING", attempt=2)

    resumed = History.of(script.events)

    assert resumed.failure is None
    assert not resumed.is_ended
    assert resumed.attempt == 2


def test_a_stage_that_runs_in_two_attempts_took_the_time_of_both():
    script = scripted.Script()
    script.stage(SFT, "first", 3.0)
    script.stage(SFT, "second", 4.0)

    assert History.of(script.events).stages[SFT].duration_s == 7.0


def test_a_newer_servers_states_and_stages_are_shown_by_number():
    assert (state_name(99), stage_title(99)) == ("99", "99")
