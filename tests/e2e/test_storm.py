"""The short form of bench/robustness.py: each fault once, beside hostile clients; nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip(
    "serving.models", reason="torch is not installed: nothing is trained or served in the storm"
)

from e2e.storm.contention import MOVED_MEANWHILE, RECORDED, step
from e2e.storm.record import Call, Outage, Record
from e2e.storm.storm import Plan, run
from linearizability import Impossible


def test_a_storm_loses_nothing_and_harms_nobody(tmp_path: Path):
    outcome = asyncio.run(run(Plan(quiet_s=2.0, storm_s=0.0, pause_s=1.0, timeout_s=120.0), tmp_path))
    assert outcome.lost == []
    assert outcome.faults == []
    assert all(outcome.times.values())
    assert all(number > 0 for number in outcome.acknowledged.values()), outcome.acknowledged
    if outcome.skipped:
        pytest.skip(f"all else held; {outcome.skipped}")


@pytest.mark.parametrize(
    ("state", "call", "answer", "after"),
    [
        (None, ("set", "-", "1.0.0"), "1.0.0", "1.0.0"),
        ("1.0.0", ("set", "1.0.0", "1.1.0"), "1.1.0", "1.1.0"),
        ("1.0.0", ("set", "-", "1.1.0"), MOVED_MEANWHILE, "1.0.0"),
        ("1.0.0", ("set", "1.0.0", "1.1.0"), None, "1.1.0"),
        (None, ("bump",), "1.0.0", "1.0.0"),
        ("1.9.0", ("bump",), "1.10.0", "1.10.0"),
        ("1.9.0", ("read",), "1.9.0", "1.9.0"),
        (None, ("record",), "accepted", RECORDED),
        (RECORDED, ("record",), "duplicate", RECORDED),
        (RECORDED, ("record",), "accepted or duplicate", RECORDED),
    ],
)
def test_what_a_call_makes_of_an_object(state: object, call: object, answer: object, after: object):
    assert step(state, call, answer) == after


@pytest.mark.parametrize(
    ("state", "call", "answer"),
    [
        ("1.0.0", ("set", "-", "1.1.0"), "1.1.0"),
        ("1.0.0", ("set", "1.0.0", "1.1.0"), MOVED_MEANWHILE),
        ("1.0.0", ("bump",), "1.0.0"),
        ("1.0.0", ("read",), "1.1.0"),
        (RECORDED, ("record",), "accepted"),
        (None, ("record",), "duplicate"),
    ],
)
def test_what_a_call_cannot_be_answered(state: object, call: object, answer: object):
    with pytest.raises(Impossible):
        step(state, call, answer)


def call(code: str, begun: float, service: str = "registry") -> Call:
    return Call("GetModel", service, begun, begun + 0.1, code)


def test_only_unavailable_is_excused_and_only_while_the_service_is_away():
    outage = Outage("kill", frozenset({"registry"}), begun=100.0, ended=110.0)
    excused = [call("UNAVAILABLE", 100.0), call("UNAVAILABLE", 112.0), call("OK", 50.0)]
    faults = [
        call("UNAVAILABLE", 50.0),
        call("UNAVAILABLE", 120.0),
        call("UNAVAILABLE", 105.0, "trainer"),
        call("INTERNAL", 105.0),
    ]
    assert Record(excused, [outage]).faults() == []
    for fault in faults:
        assert len(Record([*excused, fault], [outage]).faults()) == 1
    record = Record(died=["trainer (1)"], gave_up=["refused"])
    record.hostile["page token", "INTERNAL"] += 1
    assert len(record.faults()) == 3
