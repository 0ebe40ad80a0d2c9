"""What a job's model would read of a data set, told by a process whose memory and time are bounded."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from neuroweaver.artifacts.content import digest_of
from neuroweaver.base_models import confinement
from neuroweaver.base_models.rendering import CPU_S
from neuroweaver.mesh.machine import processes
from neuroweaver.mesh.wire.errors import DeadlineExceeded, InvalidArgument, Unavailable
from neuroweaver.mesh.wire.threads import check_wanted
from neuroweaver.trainer.data.files import format_of
from neuroweaver.trainer.data.tokens import TokenCount
from neuroweaver.trainer.data.trial import Fault, Plan, Trial

# Of the call's time; the rest is for the row at work, and for what comes behind the trial.
TRIAL_SHARE: Final = 0.5
MAX_REMEMBERED: Final = 64
_POLL_S: Final = 0.2
# Of a model's files; larger ones are weights.
_MAX_FILE_BYTES: Final = 64 << 20
_TRIALS: Final[dict[Hashable, Trial]] = {}
_LOCK: Final = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Request:
    """model_folder: None while the base model is still to come. dataset_digest: SHA-256 of the file, in hex.

    within: what precedes the name of a field at fault.
    """

    model_folder: Path | None
    dataset_path: Path = field(compare=False)
    dataset_digest: str
    specialization: str
    within: str = ""
    deadline_s: float = field(compare=False)


def count(
    request: Request, *, max_seq_length: int, base_model: str, vocab_size: int
) -> tuple[TokenCount, list[str]]:
    """The count of all rows, and why the base model's tokenizer is of no use, if so.

    Blocks until the process has counted. Raises InvalidArgument, DeadlineExceeded, Unavailable.
    """
    answer = _answer(
        request, {"max_seq_length": max_seq_length, "base_model": base_model, "vocab_size": vocab_size}
    )
    return TokenCount(**answer["count"]), answer["faults"]


def tried(request: Request, plan: Plan) -> Trial:
    """As `count`, of a job; in as much detail as half of the time allows.

    A whole trial is remembered by all that it depends on: jobs often differ in other numbers alone.
    """
    files = request.model_folder and files_of(request.model_folder)
    key = (request, format_of(request.dataset_path), plan, files)
    with _LOCK:
        trial = _TRIALS.get(key)
    if trial is None:
        trial = _tried(request, plan)
        if trial.is_whole:
            _remember(key, trial)
    return trial


def _tried(request: Request, plan: Plan) -> Trial:
    # By a clock that all processes of a machine share.
    share_s = request.deadline_s * TRIAL_SHARE
    asked = {"plan": asdict(plan), "enough_s": time.monotonic() + share_s}
    told = _answer(request, asked, wait_s=share_s + CPU_S)["trial"]
    return Trial(**told | {"faults": tuple(Fault(**fault) for fault in told["faults"])})


def _remember(key: Hashable, trial: Trial) -> None:
    with _LOCK:
        _TRIALS[key] = trial
        while len(_TRIALS) > MAX_REMEMBERED:
            del _TRIALS[next(iter(_TRIALS))]


def _answer(request: Request, asked: dict[str, Any], *, wait_s: float = math.inf) -> dict[str, Any]:
    common = {
        "model_folder": str(request.model_folder or ""),
        "dataset_path": str(request.dataset_path),
        "specialization": request.specialization,
        "deadline_s": request.deadline_s,
    }
    status, output, told, line = _ran(json.dumps(common | asked), min(wait_s, request.deadline_s))
    if -status in {signal.SIGKILL, signal.SIGTERM}:
        raise Unavailable("the process that counts tokens was killed, perhaps for want of memory")
    if status == -signal.SIGXCPU:
        slow = f"its chat template or tokenizer takes more than {CPU_S} s for {_place(line)}"
        raise InvalidArgument(f"{request.within}base_model", slow)
    if status < 0:
        crash = f"its chat template or tokenizer crashes: its process {processes.ending(status)}"
        raise InvalidArgument(f"{request.within}base_model", crash)
    if status:
        raise RuntimeError(f"the process that counts tokens failed:\n{told}")
    answer: dict[str, Any] = json.loads(output)
    if "fault" in answer:
        raise InvalidArgument(request.within + answer["field"], answer["fault"])
    # None of a file that was not read to its end.
    if answer["digest"] not in {None, request.dataset_digest}:
        raise InvalidArgument(f"{request.within}dataset_path", "has changed while it was read: ask again")
    return answer


def _ran(asked: str, deadline_s: float) -> tuple[int, str, str, int]:
    """Status, output and errors of the process, and the line of the last row that it began with.

    It is killed at the deadline, or if nobody waits any more.
    """
    give_up = time.monotonic() + deadline_s
    with (
        tempfile.TemporaryFile() as place,
        subprocess.Popen(  # noqa: S603  # a module of ours
            processes.module("neuroweaver.trainer.data", str(place.fileno())),
            pass_fds=[place.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=confinement.environment(os.environ),
        ) as process,
    ):
        try:
            request: str | None = asked
            while True:
                with suppress(subprocess.TimeoutExpired):
                    output, told = process.communicate(request, timeout=_POLL_S)
                    return process.returncode, output, told, _line(place)
                request = None  # it is on its way
                check_wanted()
                if time.monotonic() > give_up:
                    raise DeadlineExceeded(
                        "the rows were not read and written by the chat template of base_model after "
                        f"{deadline_s:.3g} s; it was at {_place(_line(place))}"
                    )
        finally:
            process.kill()


def _line(place: BinaryIO) -> int:
    return int(os.pread(place.fileno(), 20, 0) or 0)


def _place(line: int) -> str:
    return f"line {line} of the data set" if line else "a chat of a few words"


def files_of(folder: Path) -> Hashable:
    """The content of all but the weights: tokenizer, template and their settings."""
    files = sorted(path for path in folder.iterdir() if path.suffix != ".safetensors" and path.is_file())
    return tuple((path.name, _content(path)) for path in files)


def _content(path: Path) -> Hashable:
    status = path.stat()
    return digest_of(path) if status.st_size <= _MAX_FILE_BYTES else (status.st_size, status.st_mtime_ns)
