from __future__ import annotations

import io

import pytest
from rich.console import Console

from clients import scripted
from neuroweaver.cli.terminal.watching import Display, display
from neuroweaver.cli.train.progress import Board, summary
from neuroweaver.client.training_history import History
from neuroweaver.v1 import trainer_pb2


def shown(events, *, width=80, config=None) -> str:
    """The board after these events."""
    board = Board(trainer_pb2.TrainingJob(config=config or scripted.config()))
    for event in events:
        board.add(event)
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(board.render())
    return console.export_text()


def until(kind, stage):
    events = scripted.successful()
    for number, event in enumerate(events):
        if event.WhichOneof("event") == kind and getattr(event, kind).stage == stage:
            return events[: number + 1]
    raise AssertionError


def test_the_board_tells_each_stage_of_a_finished_job():
    lines = shown(scripted.successful()).splitlines()

    assert "SUCCEEDED  6 min 34 s" in lines[0]
    rows = (
        "rows 224", "held-out loss 2.91 → 2.07", "44.9 s", "6.1 s", "accuracy 0.739", "reward -0.105 → 0.792",
        "1 min 14 s", "2.2 s",
    )  # fmt: skip
    for line, told in zip(lines[1:9], rows, strict=True):
        assert line.startswith("✓")
        assert told in line
    assert "3 of 224 rows" in lines[9]


def test_the_board_tells_the_step_at_work_within_80_columns():
    text = shown(until("progress", trainer_pb2.STAGE_PPO))

    for told in ("1/24", "ETA 2 min 15 s", "reward -0.105", "KL 0.214", "tok/s"):
        assert told in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_stage_without_a_step_yet_tells_what_it_will_do():
    assert "2 epochs over 202 rows" in shown(until("stage_started", trainer_pb2.STAGE_SFT))


def test_a_failed_stage_is_marked():
    lines = shown(scripted.failed()).splitlines()

    assert lines[2].startswith("✗ Fine-tuning")


def test_a_job_without_rlaif_shows_no_stage_of_it():
    text = shown([], config=scripted.config(enable_rlaif=False))

    assert "PPO" not in text
    assert "Validation" in text


def test_a_lost_connection_is_told_until_the_next_event():
    events = scripted.successful()
    board = Board(scripted.job(events))
    shown = Display(board, board.line, as_json=False)
    console = Console(file=io.StringIO(), width=100, record=True)
    shown.show(events[0])
    shown.interrupted(None)
    console.print(shown.render())
    assert "connection lost" in console.export_text()

    shown.show(events[1])
    console.print(shown.render())
    assert "connection lost" not in console.export_text()


def test_text_from_elsewhere_cannot_steer_the_board():
    script = scripted.Script()
    script.add(notice=trainer_pb2.Notice(reason="X", message="\x1b[2J[red]boo[/red]"))

    text = shown(script.events)

    assert "\x1b" not in text
    assert "[red]boo[/red]" in text


def test_without_a_terminal_there_are_lines(capsys):
    events = scripted.successful()
    board = Board(scripted.job(events))
    with display(board, board.line, as_json=False) as lines:
        assert not lines.is_live
        for event in events:
            lines.show(event)
        lines.interrupted(None)

    told = capsys.readouterr().out
    assert "Fine-tuning done in 1 min 36 s" in told
    assert "connection lost" in told
    assert told.count("\n") < 30


@pytest.mark.parametrize("stage", [trainer_pb2.STAGE_FEEDBACK, trainer_pb2.STAGE_VALIDATION])
def test_a_stage_without_numbers_has_no_summary(stage):
    assert summary(History.of(scripted.successful()).stages[stage]) == ""
