"""What a job's model would read of a data set, told by a process whose memory and time are bounded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from neuroweaver.mesh.wire.errors import DeadlineExceeded, InvalidArgument
from neuroweaver.trainer.data.tokens import TokenCount

# Threads of their own would take addresses for each core of the machine, and help none.
_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
# All that the process sees of this one's variables, some of which are secrets.
_INHERITED: Final = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR")


def count(
    model_folder: Path,
    dataset_path: Path,
    *,
    specialization: str,
    max_seq_length: int = 0,
    deadline_s: float,
    within: str = "",
    environ: Mapping[str, str] = os.environ,
) -> TokenCount:
    """Counts all rows, or without a `max_seq_length` tries one row of each sequence of roles. Blocks.

    within: what precedes a field's name. Raises InvalidArgument, DeadlineExceeded.
    """
    request = {
        "model_folder": str(model_folder),
        "dataset_path": str(dataset_path),
        "specialization": specialization,
        "max_seq_length": max_seq_length,
    }
    try:
        process = subprocess.run(
            [sys.executable, "-m", "neuroweaver.trainer.data"],
            input=json.dumps(request),
            capture_output=True,
            timeout=deadline_s,
            text=True,
            check=False,
            env={name: environ[name] for name in _INHERITED if name in environ} | _ENVIRONMENT,
        )
    except subprocess.TimeoutExpired as error:
        raise DeadlineExceeded(
            f"the chat template of the base model had not written the rows after {deadline_s:.3g} s"
        ) from error
    if process.returncode < 0:
        by = signal.Signals(-process.returncode).name
        raise InvalidArgument(f"{within}base_model", f"its chat template or tokenizer crashes ({by})")
    if process.returncode:
        raise RuntimeError(f"the process that counts tokens failed:\n{process.stderr}")
    answer = json.loads(process.stdout)
    if "fault" in answer:
        raise InvalidArgument(within + answer["field"], answer["fault"])
    return TokenCount(**answer)
