from __future__ import annotations

import io
import json
import logging
import sys

import pytest

from neuroweaver.mesh import logs, telemetry
from neuroweaver.mesh.logs import HumanFormatter, JsonFormatter


@pytest.fixture
def logger():
    """Writes to `logger.stream`."""
    made = logging.Logger("neuroweaver.trainer", logging.DEBUG)  # noqa: LOG001 (of no hierarchy)
    made.stream = io.StringIO()
    made.addHandler(logging.StreamHandler(made.stream))
    return made


def json_line(logger: logging.Logger, say) -> dict:
    logger.handlers[0].setFormatter(JsonFormatter("trainer"))
    say()
    (line,) = logger.stream.getvalue().splitlines()
    return json.loads(line)


def test_a_record_is_one_line_of_json_with_its_fields(logger):
    told = json_line(logger, lambda: logger.info("job %s\nstarted", "j1", extra={"job_id": "j1", "step": 3}))

    assert told["message"] == "job j1\nstarted"
    assert (told["level"], told["service"], told["logger"]) == ("info", "trainer", "neuroweaver.trainer")
    assert (told["job_id"], told["step"]) == ("j1", 3)
    assert told["time"].endswith("+00:00")
    assert "trace_id" not in told


def test_a_record_names_its_trace(logger):
    with telemetry.tracer.start_as_current_span("work"):
        told = json_line(logger, lambda: logger.info("inside"))
        assert told["trace_id"] == telemetry.current_trace_id()


def test_an_exception_is_within_its_record(logger):
    told = json_line(logger, lambda: logger.error("failed", exc_info=LookupError("gone")))

    assert "LookupError: gone" in told["exception"]


def test_a_person_reads_time_level_message_and_fields(logger):
    logger.handlers[0].setFormatter(HumanFormatter())
    logger.warning("disk low", extra={"free_gb": 2})

    assert logger.stream.getvalue().rstrip().endswith("WARNING disk low free_gb=2")


@pytest.fixture
def _restored():
    root, ours = logging.getLogger(), logging.getLogger("neuroweaver")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level = before[0], before[1]
    ours.setLevel(before[2])


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize(
    ("log_format", "tty", "kind"),
    [
        ("auto", False, JsonFormatter),
        ("auto", True, HumanFormatter),
        ("json", True, JsonFormatter),
        ("human", False, HumanFormatter),
    ],
)
def test_machines_get_json_and_a_terminal_gets_lines(log_format, tty, kind, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: tty
    monkeypatch.setattr(sys, "stderr", stream)

    logs.configure("trainer", log_format=log_format)

    assert isinstance(logging.getLogger().handlers[0].formatter, kind)


@pytest.mark.usefixtures("_restored")
def test_debugging_is_for_our_own_logs():
    logs.configure("trainer", debug=True)

    assert logging.getLogger("neuroweaver.access").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("asyncio").isEnabledFor(logging.DEBUG)
