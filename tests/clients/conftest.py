from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from clients.fakes import FakeRegistry, FakeTrainer, serving
from neuroweaver.cli.program import run
from neuroweaver.mesh.wire.settings import PORTS


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def fake_trainer() -> FakeTrainer:
    return FakeTrainer()


@pytest.fixture
def fake_registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def mesh(fake_trainer, fake_registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of every service, as the environment tells it to the command line."""
    with serving(fake_trainer, fake_registry) as address:
        for service in PORTS:
            monkeypatch.setenv(f"NEUROWEAVER_{service.upper()}_ADDRESS", address)
        yield address


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses where nothing listens."""
    for service in PORTS:
        monkeypatch.setenv(f"NEUROWEAVER_{service.upper()}_ADDRESS", "127.0.0.1:1")


@pytest.fixture
def neuroweaver(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line: `neuroweaver("train", "list").code`."""

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Outcome(int(code), out, err)

    return call
