from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from clients.fakes import FakeRegistry, FakeTrainer, serving
from neuroweaver.cli.program import run
from neuroweaver.mesh.wire.settings import PORTS


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> dict[str, Any]:
        """The one JSON line on stderr."""
        [line] = self.err.splitlines()
        return json.loads(line)["error"]

    @property
    def fields(self) -> list[str]:
        """What the error is about."""
        return [violation["field"] for violation in self.error["violations"]]


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


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a person with this answer at the terminal."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    return lambda answer: monkeypatch.setattr("sys.stdin", Terminal(answer))
