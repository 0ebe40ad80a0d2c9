from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neuroweaver.mesh.server import logs
from neuroweaver.mesh.server.logs import GatheringHandler, HumanFormatter, JsonFormatter
from neuroweaver.mesh.wire import telemetry

SOURCES = os.pathsep.join(str(Path(__file__).parents[3] / part) for part in ("services", "gen/python"))
ENVIRON = {**os.environ, "PYTHONPATH": SOURCES}


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
def gathering():
    """An access log and another one that write to `gathering.stream`."""
    handler = GatheringHandler(io.StringIO())
    handler.setFormatter(JsonFormatter("trainer"))
    yield handler
    handler.close()


def said(handler: logging.Handler, name: str, level: int, text: str) -> None:
    handler.handle(logging.makeLogRecord({"name": name, "levelno": level, "levelname": "INFO", "msg": text}))


def lines_of(handler: GatheringHandler) -> list[dict]:
    return [json.loads(line) for line in handler.stream.getvalue().splitlines()]


def test_an_access_line_is_written_soon_and_in_its_own_trace(gathering):
    with telemetry.tracer.start_as_current_span("call"):
        trace_id = telemetry.current_trace_id()
        said(gathering, logs.ACCESS, logging.INFO, "rpc")
    give_up = time.monotonic() + 30
    while not gathering.stream.getvalue():
        assert time.monotonic() < give_up
        time.sleep(0.01)

    (line,) = lines_of(gathering)
    assert (line["message"], line["trace_id"]) == ("rpc", trace_id)


def test_whatever_else_is_said_goes_out_at_once_and_after_what_was_said_before(gathering):
    said(gathering, logs.ACCESS, logging.INFO, "first")
    said(gathering, "neuroweaver.trainer", logging.INFO, "second")
    said(gathering, logs.ACCESS, logging.INFO, "third")
    said(gathering, logs.ACCESS, logging.WARNING, "fourth")

    assert [line["message"] for line in lines_of(gathering)] == ["first", "second", "third", "fourth"]


def test_a_line_that_cannot_be_written_takes_no_other_with_it(gathering, monkeypatch):
    blamed = []
    monkeypatch.setattr(gathering, "handleError", blamed.append)
    said(gathering, logs.ACCESS, logging.INFO, "first")
    broken = logging.makeLogRecord(
        {"name": logs.ACCESS, "levelno": logging.INFO, "msg": "%d", "args": ("x",)}
    )
    gathering.handle(broken)
    said(gathering, "neuroweaver.trainer", logging.INFO, "last")

    assert [line["message"] for line in lines_of(gathering)] == ["first", "last"]
    assert blamed == [broken]


def test_lines_go_on_once_a_full_disk_has_room_again(gathering, monkeypatch):
    monkeypatch.setattr(gathering, "handleError", lambda _record: None)
    stream, full = gathering.stream, FullDisk()
    gathering.stream = full
    said(gathering, logs.ACCESS, logging.INFO, "lost")
    give_up = time.monotonic() + 30
    while not full.refused:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    gathering.stream = stream
    said(gathering, logs.ACCESS, logging.INFO, "written")
    while not stream.getvalue():
        assert time.monotonic() < give_up
        time.sleep(0.01)

    assert [line["message"] for line in lines_of(gathering)] == ["written"]


class FullDisk(io.StringIO):
    refused = 0

    def write(self, _text: str) -> int:
        self.refused += 1
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        if self.refused:
            raise OSError(28, "No space left on device")


def test_the_end_of_the_process_writes_what_waits():
    program = (
        "import logging; from neuroweaver.mesh.server import logs\n"
        "logs.configure('trainer', log_format='json')\n"
        "logging.getLogger(logs.ACCESS).info('last words')"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRON, capture_output=True, text=True, check=True
    )

    assert json.loads(told.stderr)["message"] == "last words"


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
