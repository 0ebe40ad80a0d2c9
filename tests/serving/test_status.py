from __future__ import annotations

import pytest

from neuroweaver.serving.status import Phase, Pulse, Status


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pulse(clock):
    return Pulse(stall_s=5, probe_interval_s=10, clock=clock)


def test_work_without_progress_is_trouble_after_the_time_to_stall(pulse, clock):
    clock.now += 12  # idle until now, which is no fault
    pulse.work()
    clock.now += 5
    assert not pulse.trouble()
    clock.now += 0.1
    assert "5 s" in pulse.trouble()
    pulse.beat(made_tokens=False)
    assert not pulse.trouble()


def test_more_work_does_not_hide_that_none_gets_on(pulse, clock):
    for _ in range(4):
        pulse.work()
        clock.now += 2
    assert pulse.trouble()


def test_an_idle_engine_is_in_trouble_when_its_probe_is_overdue(pulse, clock):
    pulse.beat(made_tokens=True)
    clock.now += 15
    assert not pulse.trouble()
    clock.now += 0.1
    assert "probe" in pulse.trouble()


def test_only_a_token_moves_the_time_of_the_last_one(pulse):
    pulse.beat(made_tokens=False)
    assert pulse.last_token_time is None
    pulse.beat(made_tokens=True)
    assert pulse.last_token_time is not None


def test_phases_take_as_long_as_the_clock_says(pulse, clock):
    status = Status(pulse, pulse, clock)
    clock.now += 2
    status.enter(Phase.LOADING)
    clock.now += 3
    assert status.report()["phases"] == {"pulling": 2, "loading": 3}
    assert status.is_live
    assert not status.is_ready


def test_trouble_makes_a_ready_server_neither_live_nor_ready(pulse, clock):
    status = Status(pulse, pulse, clock)
    status.enter(Phase.READY)
    assert status.is_live
    assert status.is_ready
    clock.now += 60
    assert not status.is_live
    assert not status.is_ready
    assert "no token" in status.report()["reason"]


def test_loading_may_take_longer_than_any_token(pulse, clock):
    status = Status(pulse, pulse, clock)
    status.enter(Phase.LOADING)
    clock.now += 600
    assert status.is_live
    assert status.report()["reason"] == ""


def test_a_draining_server_never_becomes_ready_again(pulse):
    status = Status(pulse, pulse)
    status.enter(Phase.DRAINING, "asked to end")
    status.enter(Phase.READY)
    assert status.phase is Phase.DRAINING
    assert status.is_live
    status.enter(Phase.FAILED, "lost")
    assert not status.is_live


def test_tokenizers_that_do_nothing_are_trouble_while_the_engine_goes_on(pulse, clock):
    tokenizing = Pulse(
        pulse.stall_s, pulse.probe_interval_s, clock, missed="the tokenizers have made no prompt"
    )
    status = Status(pulse, tokenizing, clock)
    status.enter(Phase.READY)
    clock.now += 60
    pulse.beat(made_tokens=True)
    assert not status.is_live
    assert "the tokenizers have made no prompt for" in status.report()["reason"]
    tokenizing.beat(made_tokens=False)
    assert status.is_live
