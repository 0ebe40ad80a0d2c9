"""The worker's line to the trainer: events and log lines up, acknowledgements and the order to stop down."""

from __future__ import annotations

import logging
import random
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import grpc
from google.protobuf.message import Message

from neuroweaver.mesh.server.redaction import redacted_text, secrets_of
from neuroweaver.mesh.wire.channel import sync_channel
from neuroweaver.mesh.wire.keepable import keepable
from neuroweaver.mesh.wire.status import describe, reason
from neuroweaver.v1 import trainer_pb2 as pb
from neuroweaver.v1 import worker_pb2, worker_pb2_grpc

_LOG: Final = logging.getLogger(__name__)

BEAT_S: Final = 2.0
RECONNECT_S: Final = 1.0
# Well within the trainer's patience with a silent worker.
MAX_RECONNECT_S: Final = 10.0
# Kept while the trainer is away; beyond this, progress and log lines are dropped, never another event.
MAX_WAITING: Final = 10_000
# Of what an exception says, in characters.
MAX_WORDS: Final = 500

# Without an answer, a later try can help; an answer says what to change.
NO_ANSWER: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
# These answers will not change later; a trainer whose database is read-only may yet recover.
_FINAL: Final = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED}
)
# Neither will these: another attempt has the job, or what the trainer acknowledged was restored away.
_FINAL_REASONS: Final = frozenset({"LEASE_LOST", "REPORT_MISSING"})


class Link:
    """Delivers in the background, in order, at least once; the trainer drops what it has stored already.

    The connection is re-established as long as the worker lives: training goes on while the trainer restarts.
    """

    def __init__(self, address: str, job_id: str, lease_token: int, secret: str) -> None:
        self.must_stop = threading.Event()
        """Set when the job was cancelled, or when this worker's lease is no longer the job's."""
        self._is_fenced = False
        self._job_id = job_id
        self._lease_token = lease_token
        self._metadata = (("authorization", f"Bearer {secret}"),)
        self._channel = sync_channel(address)
        self._waiting: deque[worker_pb2.ReportRequest] = deque()
        self._last = 0
        self._sent = 0
        """The highest number that may have reached the trainer."""
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="trainer-link", daemon=True)
        self._thread.start()

    def event(self, event: pb.TrainingEvent) -> None:
        event.time.GetCurrentTime()
        _make_keepable(event)
        self._put(worker_pb2.ReportRequest(event=event))

    def log(self, level: str, message: str) -> None:
        line = pb.LogLine(level=level, message=keepable(message))
        line.time.GetCurrentTime()
        self._put(worker_pb2.ReportRequest(log=line))

    def close(self, timeout_s: float) -> bool:
        """Whether everything was delivered within `timeout_s`; nothing can be sent afterwards."""
        give_up = time.monotonic() + timeout_s
        with self._changed:
            while self._waiting and not self._is_fenced and (left := give_up - time.monotonic()) > 0:
                self._changed.wait(left)
            self._is_closing = True
            self._changed.notify_all()
            is_delivered = not self._waiting
        self._channel.close()
        self._thread.join(timeout=5)
        return is_delivered

    def _put(self, report: worker_pb2.ReportRequest) -> None:
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                self._drop_progress()
            self._last += 1
            report.job_id, report.lease_token, report.number = self._job_id, self._lease_token, self._last
            self._waiting.append(report)
            self._changed.notify_all()

    def _drop_progress(self) -> None:
        """Of what was never sent; the rest closes up, since the trainer takes no report after a gap."""
        kept = [
            report
            for report in self._waiting
            if report.number <= self._sent
            or not (report.event.HasField("progress") or report.HasField("log"))
        ]
        self._last = self._sent
        for report in kept:
            if report.number > self._sent:
                self._last += 1
                report.number = self._last
        self._waiting = deque(kept)

    def _run(self) -> None:
        stub = worker_pb2_grpc.WorkerServiceStub(self._channel)
        failures = 0
        while not self._is_closing:
            try:
                for answer in stub.Report(self._requests(), metadata=self._metadata):
                    if failures:
                        _LOG.info("the trainer is heard again")
                        failures = 0
                    self._take(answer)
            except grpc.RpcError as error:
                if error.code() in _FINAL or reason(error) in _FINAL_REASONS:
                    _LOG.warning("the trainer has dismissed this worker: %s", describe(error))
                    with self._changed:
                        self._is_fenced = True
                        self._changed.notify_all()
                    self.must_stop.set()
                    return
                if not failures:
                    _LOG.warning("the trainer is away, and its reports are held: %s", describe(error))
            except ValueError:  # the channel was closed between two attempts
                return
            failures += 1
            pause_s = min(RECONNECT_S * 2.0 ** min(failures - 1, 8), MAX_RECONNECT_S)
            pause_s *= random.uniform(0.5, 1.0)
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing, pause_s)

    def _requests(self) -> Iterator[worker_pb2.ReportRequest]:
        """Everything not yet acknowledged, then what comes; a beat when nothing comes."""
        sent = 0
        yield worker_pb2.ReportRequest(job_id=self._job_id, lease_token=self._lease_token)
        while True:
            with self._changed:
                if not self._fresh(sent) and not self._is_closing:
                    self._changed.wait(BEAT_S)
                fresh = self._fresh(sent)
                if self._is_closing and not fresh:
                    return
                if fresh:
                    self._sent = max(self._sent, fresh[-1].number)
            for report in fresh:
                yield report
                sent = report.number
            if not fresh:
                yield worker_pb2.ReportRequest(job_id=self._job_id, lease_token=self._lease_token)

    def _fresh(self, sent: int) -> list[worker_pb2.ReportRequest]:
        return [report for report in self._waiting if report.number > sent]

    def _take(self, answer: worker_pb2.ReportResponse) -> None:
        with self._changed:
            while self._waiting and self._waiting[0].number <= answer.acknowledged:
                self._waiting.popleft()
            self._changed.notify_all()
        if answer.should_stop:
            self.must_stop.set()


def _make_keepable(message: Message) -> None:
    """A model can write any character, and the trainer refuses those that no database keeps."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue  # of numbers and files, by names of ours
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                _make_keepable(inner)
        elif field.type == field.TYPE_STRING and not field.is_repeated:
            setattr(message, field.name, keepable(value))


class LinkHandler(logging.Handler):
    """Sends log records to the trainer without secrets; tracebacks stay in the worker's own log file.

    environ: whose secret values must not show.
    """

    def __init__(self, link: Link, environ: Mapping[str, str]) -> None:
        super().__init__(logging.INFO)
        self._link = link
        self._secrets = secrets_of(environ)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(__name__):  # a log line of the link itself would cause the next
            return
        error = record.exc_info[1] if record.exc_info else None
        message = redacted_text(record.getMessage(), self._secrets)
        causes = "; because of ".join(_told(cause, self._secrets) for cause in _chain(error))
        self._link.log(record.levelname, f"{message}: {causes}" if causes else message)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, what caused that, as a traceback shows them."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _told(error: BaseException, secrets: frozenset[str]) -> str:
    """What it is, what it says in one line, and where it was raised."""
    words = redacted_text(" ".join(str(error).split()), secrets)
    if len(words) > MAX_WORDS:
        words = f"{words[:MAX_WORDS]}\u2026"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{f': {words}' if words else ''}{where}"
