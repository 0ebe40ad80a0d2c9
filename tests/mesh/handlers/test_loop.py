from __future__ import annotations

import asyncio
import logging

import pytest
from prometheus_client import REGISTRY
from sqlalchemy.exc import OperationalError

from neuroweaver.mesh.handlers import loop as loop_module
from neuroweaver.mesh.handlers.loop import MAX_BACKOFF_S, Outage, Outages, repeat
from neuroweaver.mesh.handlers.signals import Signal
from neuroweaver.mesh.wire.errors import NotFound

LOGGER = "neuroweaver.loop"


class EndError(Exception):
    pass


@pytest.fixture
def _hurried(monkeypatch):
    """Back-off takes no time."""
    monkeypatch.setattr(loop_module, "FIRST_BACKOFF_S", 0.0)


@pytest.fixture
def told(caplog):
    """The lines that were logged, as level, message and cause."""
    caplog.set_level(logging.INFO, LOGGER)
    return lambda: [(each.levelname, each.message, getattr(each, "cause", "")) for each in caplog.records]


def away(detail: str = "connection refused") -> OperationalError:
    return OperationalError("SELECT secret", {}, ConnectionError(detail))


async def _run(turns, **options) -> int:
    """Takes the turns, each of which is raised if it is an exception; returns the number taken."""
    script, taken = iter(turns), 0

    async def turn() -> None:
        nonlocal taken
        following = next(script, None)
        if following is None:
            raise EndError
        taken += 1
        if isinstance(following, Exception):
            raise following

    async with asyncio.timeout(60):
        with pytest.raises(EndError):
            await repeat("testing", turn, 0.0, passing=(EndError,), **options)
    return taken


@pytest.mark.usefixtures("_hurried")
async def test_a_failure_is_told_once_and_its_end_once_however_long_it_lasts(told):
    before = REGISTRY.get_sample_value("neuroweaver_loop_failures_total", {"loop": "testing"}) or 0

    assert await _run(["", *[away()] * 5, "", "", away(), ""]) == 10

    failed, recovered = "failed; it is tried until it succeeds", "recovered"
    cause = "ConnectionError: connection refused"
    assert told() == [("WARNING", failed, cause), ("INFO", recovered, "")] * 2
    after = REGISTRY.get_sample_value("neuroweaver_loop_failures_total", {"loop": "testing"})
    assert after == before + 6


@pytest.mark.usefixtures("_hurried")
async def test_another_cause_is_told_too_but_none_twice_and_no_more_than_eight(told):
    await _run([away("one"), away("two"), away("one"), *(away(str(number)) for number in range(20))])

    causes = [cause.removeprefix("ConnectionError: ") for _, _, cause in told()]
    assert causes == ["one", "two", "0", "1", "2", "3", "4", "5"]


@pytest.mark.usefixtures("_hurried")
async def test_a_fault_of_ours_is_survived_and_logged_whole(caplog):
    await _run([KeyError("mistake"), ""])

    (error,) = [record for record in caplog.records if record.name == LOGGER and record.levelname == "ERROR"]
    assert error.exc_info[0] is KeyError


async def test_the_waits_grow_to_a_bound_with_jitter_and_begin_anew():
    outage, waits = Outage("testing"), []
    for _ in range(20):
        outage.failed(away())
        waits.append(outage.backoff_s)

    for number, wait_s in enumerate(waits):
        longest_s = min(2.0**number, MAX_BACKOFF_S)
        assert longest_s / 2 <= wait_s <= longest_s
    assert len(set(waits[8:])) > 1
    outage.over()
    assert outage.backoff_s == 0.0
    outage.failed(away())
    assert outage.backoff_s <= 1.0


async def test_a_wake_up_begins_the_next_turn_but_not_before_a_back_off_is_over(monkeypatch):
    slept: list[float] = []
    wake, turns = Signal(), 0

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)

    async def turn() -> None:
        nonlocal turns
        turns += 1
        wake.notify()  # arrives while the turn is taken
        if turns == 2:
            raise away()
        if turns == 4:
            raise EndError

    monkeypatch.setattr(loop_module.asyncio, "sleep", sleep)
    async with asyncio.timeout(60):
        with pytest.raises(EndError):
            await repeat("testing", turn, 3600.0, wake=wake, passing=(EndError,))

    assert turns == 4
    assert len(slept) == 1


async def test_a_cancelled_loop_ends():
    begun = asyncio.Event()

    async def turn() -> None:
        begun.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(repeat("testing", turn, 0.0))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_one_of_several_things_that_fails_is_told_by_its_name_and_forgotten_when_it_succeeds(told, caplog):
    outages = Outages("testing")
    for _ in range(3):
        for name in ("broken", "well"):
            with outages.survived(what=name):
                if name == "broken":
                    raise NotFound("thing", name)
    assert [each.name for each in caplog.records] == [LOGGER]
    assert 0 < outages.backoff_s <= 4.0

    with outages.survived(what="broken"):
        pass

    assert outages.backoff_s == 0.0
    assert [message for _, message, _ in told()][-1] == "recovered"
    with pytest.raises(EndError), outages.survived(EndError, what="broken"):
        raise EndError
