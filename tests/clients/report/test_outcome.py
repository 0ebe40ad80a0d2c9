from __future__ import annotations

import pytest

from clients import scripted
from neuroweaver.client.text import duration, number, plain
from neuroweaver.report import outcome
from neuroweaver.v1 import trainer_pb2
from neuroweaver.v1.common_pb2 import Interval


def rate(lower, upper, *, wins=60, losses=40, missing=0):
    return trainer_pb2.WinRate(
        wins=wins,
        losses=losses,
        missing=missing,
        rate=wins / (wins + losses) if wins + losses else 0.0,
        interval=Interval(lower=lower, upper=upper, confidence=0.95),
    )


@pytest.mark.parametrize(
    ("lower", "upper", "said"),
    [
        (0.51, 0.69, "judged better than its base"),
        (0.30, 0.49, "judged worse than its base"),
        (0.45, 0.69, "is inconclusive"),
        (0.50, 0.69, "is inconclusive"),
    ],
)
def test_the_interval_decides_what_is_said(lower, upper, said):
    assert said in outcome.verdict(rate(lower, upper))[0]


def test_few_comparisons_and_missing_verdicts_are_said():
    _, sure = outcome.verdict(rate(0.4, 0.9, wins=7, losses=3, missing=2))

    assert "10 comparisons are few" in sure
    assert "50 points wide" in sure
    assert "2 prompts without a verdict" in sure


def test_many_comparisons_are_not_called_few():
    assert "few" not in outcome.verdict(rate(0.5, 0.7))[1]


def test_without_a_comparison_no_rate_is_made_up():
    nothing = rate(0, 0, wins=0, losses=0, missing=20)

    assert outcome.win_rate_line(nothing) == ""
    assert outcome.verdict(nothing)[0] == "No answers could be compared"


def test_facts_leave_out_what_a_job_without_rlaif_does_not_have():
    result = scripted.result()
    result.ClearField("reward_model")
    result.ClearField("policy_optimization")

    names = [name for name, _ in outcome.facts(result)]

    assert "win rate" in names
    assert "reward model" not in names
    assert "PPO KL" not in names


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (2.0714, "2.07"),
        (-0.118, "-0.118"),
        (18.43, "18.4"),
        (12345.6, "12,346"),
        (2e-5, "2e-05"),
        (3e9, "3e+09"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.42, "8.4 s"), (59.97, "1 min 00 s"), (187.4, "3 min 07 s"), (3723, "1 h 02 min")],
)
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


def test_text_from_elsewhere_cannot_steer_the_terminal():
    assert plain("a\x1b[2Jb\rc\u202ed\n") == "a�[2Jb�c�d\n"
