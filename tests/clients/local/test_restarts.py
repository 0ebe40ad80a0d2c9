from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from neuroweaver.local import restarts as restarts_module
from neuroweaver.local.processes import Place
from neuroweaver.local.restarts import MAX_BACKOFF_S, STEADY_S, Restarts

NAMES = ("registry", "trainer")


@dataclass
class PlayedFleet:
    """Services whose ends the test decides. started: by name, how often each was started again."""

    places: list[Place]
    endings: dict[str, str] = field(default_factory=dict)
    started: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))
    fault: OSError | None = None

    def ending(self, place: Place) -> str:
        return self.endings.get(place.service, "")

    def start_again(self, place: Place) -> None:
        self.started[place.service] += 1
        if self.fault:
            raise self.fault
        self.endings.pop(place.service)

    def pid(self, service: str) -> int:
        return 4711


@dataclass
class Kept:
    """Restarts over a played fleet, with what they said and a clock that goes when the test says so."""

    fleet: PlayedFleet
    said: list[str] = field(default_factory=list)
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.restarts = Restarts(self.fleet, self.said.append, clock=lambda: self.now_s)

    def look(self, after_s: float = 0.0) -> None:
        self.now_s += after_s
        self.restarts.look()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setattr(restarts_module, "_is_healthy", lambda _place: True)
    return Kept(PlayedFleet([Place(name, "127.0.0.1", 1, 2, tmp_path) for name in NAMES]))


def test_a_service_that_stopped_is_started_again_and_the_other_left_alone(kept: Kept):
    kept.look(after_s=1000)
    assert kept.said == []

    kept.fleet.endings["trainer"] = "(SIGKILL): its last words"
    kept.look()
    assert kept.said == [
        "the trainer has stopped (SIGKILL): its last words; it is started again in 1 s",
    ]
    assert kept.fleet.started == {"registry": 0, "trainer": 0}

    kept.look(after_s=1)
    assert kept.fleet.started == {"registry": 0, "trainer": 1}
    kept.look()
    kept.look()
    assert kept.said[1:] == ["the trainer is serving again (process 4711)"]


def test_one_that_does_not_stay_is_started_later_and_later_and_at_once_after_it_has_stayed(kept: Kept):
    def waits(times: int) -> list[float]:
        found = []
        for _ in range(times):
            kept.fleet.endings["registry"] = "(exit code 1): no space left on device"
            kept.look()
            before = kept.now_s
            while "registry" in kept.fleet.endings:
                kept.look(after_s=0.5)
            found.append(kept.now_s - before)
        return found

    assert waits(8) == [1, 2, 4, 8, 16, 32, MAX_BACKOFF_S, MAX_BACKOFF_S]

    kept.look(after_s=STEADY_S + 1)
    assert waits(2) == [1, 2]


def test_a_start_that_the_machine_refuses_is_told_and_tried_again(kept: Kept):
    kept.fleet.endings["registry"] = "(SIGKILL): its log is empty"
    kept.fleet.fault = OSError(28, "No space left on device")
    kept.look()
    kept.look(after_s=1)
    assert (
        kept.said[-1] == "the registry cannot be started: No space left on device; it is started again in 2 s"
    )

    kept.fleet.fault = None
    kept.look(after_s=2)
    kept.look()
    assert kept.said[-1] == "the registry is serving again (process 4711)"
    assert kept.fleet.started["registry"] == 2
