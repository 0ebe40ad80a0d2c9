"""Logs of one line a record: JSON for machines, plain for a terminal, each with the trace it belongs to.

`logger.info("job started", extra={"job_id": job.id})` becomes a field `job_id`. Lines of the access log are
written some at a time, which costs a third; whatever else is said goes out at once, after those before it.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from opentelemetry import trace

_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, default=str)

ACCESS: Final = "neuroweaver.access"
"""The name of the logger of which every RPC makes a line."""

_GATHERED_S: Final = 0.2
_MOST_GATHERED: Final = 1000
_SPAN: Final = "span_context"

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", _SPAN}


def configure(service: str, *, debug: bool = False, log_format: str = "auto") -> None:
    """Sends all logs to stderr. log_format: json, human, or auto (human on a terminal)."""
    # What no format of ours shows is not collected: https://docs.python.org/3/howto/logging.html#optimization
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    human = log_format == "human" or (log_format == "auto" and sys.stderr.isatty())
    handler = GatheringHandler(sys.stderr)
    handler.setFormatter(HumanFormatter() if human else JsonFormatter(service))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("neuroweaver").setLevel(logging.DEBUG if debug else logging.INFO)
    # Alembic tells each step at INFO, httpx each request.
    for name in ("alembic", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)


class GatheringHandler(logging.StreamHandler[TextIO]):
    """Writes the access log a fraction of a second late, and its lines together."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._waiting: list[logging.LogRecord] = []
        self._is_something = threading.Event()
        self._writer: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != ACCESS or record.levelno > logging.INFO:
            self._write(record)
            return
        # Looked up now: later another span is the current one.
        setattr(record, _SPAN, trace.get_current_span().get_span_context())
        self._waiting.append(record)
        if len(self._waiting) >= _MOST_GATHERED:
            self._write()
        elif not self._is_something.is_set():
            self._is_something.set()
            self._ensure_writer()

    def flush(self) -> None:
        with self.lock or threading.RLock():
            self._write()
            super().flush()

    def _write(self, *more: logging.LogRecord) -> None:
        records, self._waiting = [*self._waiting, *more], []
        self._is_something.clear()
        lines = []
        for each in records:
            try:
                lines.append(f"{self.format(each)}\n")
            except Exception:  # noqa: BLE001  # as all of logging's handlers do; the other lines are not at fault
                self.handleError(each)
        if lines:
            try:
                self.stream.write("".join(lines))
                self.stream.flush()
            except Exception:  # noqa: BLE001  # as above
                self.handleError(records[-1])

    def _ensure_writer(self) -> None:
        if self._writer is None:
            writer = threading.Thread(target=self._write_again_and_again, name="access-log", daemon=True)
            try:
                writer.start()
            except RuntimeError:  # no thread can be had: at once then
                self._write()
            else:
                self._writer = writer

    def _write_again_and_again(self) -> None:
        while True:
            self._is_something.wait()
            time.sleep(_GATHERED_S)
            # What is wrong was told by `_write`; the stream may be back the next time.
            with suppress(OSError, ValueError):
                self.flush()


class JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **_trace_fields(record),
            **_extra(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return _ENCODER.encode(entry)


class HumanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        extra = " ".join(f"{key}={value}" for key, value in _extra(record).items())
        line = f"{time} {record.levelname:<7} {record.getMessage()} {extra}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _trace_fields(record: logging.LogRecord) -> dict[str, str]:
    context = getattr(record, _SPAN, None) or trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}
