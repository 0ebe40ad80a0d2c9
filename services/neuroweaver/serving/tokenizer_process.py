"""Makes token ids of prompts, one after the other: `python -m neuroweaver.serving.tokenizer_process FOLDER`.

Template and tokenizer are code and data of others, and prompts anybody's: they may loop or fill the memory,
which then ends this process alone. `tokenizing` starts it; messages are JSON behind their length in 4 bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO, Final

from neuroweaver.base_models.confinement import confine
from neuroweaver.serving.tokenizing import CPU_S, LENGTH

_START_CPU_S: Final = 60


def serve(folder: Path, requests: BinaryIO, answers: BinaryIO) -> None:
    """Says first that it is ready; ends with its requests."""
    from neuroweaver.base_models.tokenizer import load_tokenizer  # noqa: PLC0415 (once torch is hidden)
    from neuroweaver.serving import prompts  # noqa: PLC0415
    from neuroweaver.serving.requests import ApiError  # noqa: PLC0415

    tokenizer = load_tokenizer(folder)
    _limit_cpu(CPU_S)
    prompts.try_template(tokenizer)
    _write(answers, {})
    while head := requests.read(LENGTH.size):
        request = json.loads(requests.read(LENGTH.unpack(head)[0]))
        _limit_cpu(CPU_S)
        try:
            answer: dict[str, Any] = {"ids": prompts.token_ids(tokenizer, **request)}
        except ApiError as error:
            answer = {"refusal": dataclasses.asdict(error)}
        except MemoryError:
            answer = {"is_too_costly": True}
        _write(answers, answer)


def _write(answers: BinaryIO, answer: dict[str, Any]) -> None:
    content = json.dumps(answer).encode()
    answers.write(LENGTH.pack(len(content)) + content)
    answers.flush()


def _limit_cpu(seconds: int) -> None:
    """Of what comes now: the system ends the process after it."""
    end = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))


def main() -> None:
    confine()
    _limit_cpu(_START_CPU_S)
    # A terminal's ^C is for the model server, which finishes what it has begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print
    serve(Path(sys.argv[1]), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
