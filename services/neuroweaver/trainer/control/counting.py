"""What a job's model would read of a data set, told by a process whose memory and time are bounded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from neuroweaver.base_models.confinement import ENVIRONMENT
from neuroweaver.mesh.machine import processes
from neuroweaver.mesh.wire.errors import DeadlineExceeded, InvalidArgument, Unavailable
from neuroweaver.mesh.wire.threads import check_wanted
from neuroweaver.trainer.data.tokens import TokenCount
from neuroweaver.trainer.data.trial import Part, Trial

_POLL_S: Final = 0.2
# All that the process sees of this one's variables, some of which are secrets.
_INHERITED: Final = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR")


@dataclass(frozen=True, kw_only=True)
class Split:
    """What a job holds out: the share of the conversations, and the seed that draws them."""

    fraction: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """model_folder: None while the base model is still to come. max_seq_length: where rows are cut.

    split: of the job that is tried; None where all rows are counted. within: what precedes the name of a
    field at fault. version: of model and data, by which `tried` knows them again.
    """

    model_folder: Path | None
    dataset_path: Path = field(compare=False)
    specialization: str
    max_seq_length: int
    split: Split | None = None
    within: str = ""
    version: Hashable = None
    deadline_s: float = field(compare=False)


def count(request: Request) -> TokenCount:
    """Blocks until the process has counted. Raises InvalidArgument, DeadlineExceeded, Unavailable."""
    return TokenCount(**_answer(request))


@lru_cache(maxsize=64)  # jobs often differ in their numbers alone
def tried(request: Request) -> Trial:
    """As `count`, of the job that the request has a split for."""
    answer = _answer(request)
    train, held_out = (answer[name] and Part(**answer[name]) for name in ("train", "held_out"))
    return Trial(TokenCount(**answer["count"]), train, held_out)


def _answer(request: Request) -> dict[str, Any]:
    asked = {
        "model_folder": str(request.model_folder or ""),
        "dataset_path": str(request.dataset_path),
        "specialization": request.specialization,
        "max_seq_length": request.max_seq_length,
        "split": request.split and asdict(request.split),
        "deadline_s": request.deadline_s,
    }
    status, output, told = _ran(json.dumps(asked), request.deadline_s)
    if -status in {signal.SIGKILL, signal.SIGTERM}:
        raise Unavailable("the process that counts tokens was killed, perhaps for want of memory")
    if status < 0:
        crash = f"its chat template or tokenizer crashes: its process {processes.ending(status)}"
        raise InvalidArgument(f"{request.within}base_model", crash)
    if status:
        raise RuntimeError(f"the process that counts tokens failed:\n{told}")
    answer: dict[str, Any] = json.loads(output)
    if "fault" in answer:
        raise InvalidArgument(request.within + answer["field"], answer["fault"])
    return answer


def _ran(asked: str, deadline_s: float) -> tuple[int, str, str]:
    """Status, output and errors of the process, killed at the deadline, or if nobody waits any more."""
    give_up = time.monotonic() + deadline_s
    with subprocess.Popen(  # noqa: S603  # a module of ours
        processes.module("neuroweaver.trainer.data"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: os.environ[name] for name in _INHERITED if name in os.environ} | ENVIRONMENT,
    ) as process:
        try:
            request: str | None = asked
            while True:
                with suppress(subprocess.TimeoutExpired):
                    output, told = process.communicate(request, timeout=_POLL_S)
                    return process.returncode, output, told
                request = None  # it is on its way
                check_wanted()
                if time.monotonic() > give_up:
                    raise DeadlineExceeded(
                        f"the rows were not read and written by the chat template after {deadline_s:.3g} s"
                    )
        finally:
            process.kill()


def small_files(folder: Path) -> Hashable:
    """Names, sizes and times of change of all but the weights: tokenizer, template and their settings."""
    files = sorted(path for path in folder.iterdir() if path.suffix != ".safetensors" and path.is_file())
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
