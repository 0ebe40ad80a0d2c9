"""Counts the tokens of a data set in a process of its own: `python -m neuroweaver.trainer.data`.

The chat template and the tokenizer of a base model are code and data of others: they can loop, or fill the
memory. `control/counting.py` starts this process, bounds its time, and gives it a request on stdin.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neuroweaver.base_models.confinement import MEMORY_BYTES, confine
from neuroweaver.trainer.data.dataset import Reading
from neuroweaver.trainer.data.files import DatasetError
from neuroweaver.trainer.data.specialization import system_prompts
from neuroweaver.trainer.data.tokens import count_tokens
from neuroweaver.trainer.data.trial import MAX_SPLIT_BYTES, try_job


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The fields of a TokenCount, or of a Trial; or the request's field at fault, and why."""
    try:
        return with_tokenizer(request) if request["model_folder"] else tried(None, request)
    except DatasetError as error:
        return {"field": error.field, "fault": error.reason}


def with_tokenizer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        from neuroweaver.base_models.tokenizer import (  # noqa: PLC0415 (once torch is hidden)
            TokenizerUnusable,
            load_tokenizer,
        )
    except ImportError as error:
        lacking = f"cannot be read here: {error.name} is missing (pip install 'neuroweaver[train]')"
        return {"field": "base_model", "fault": lacking}
    try:
        tokenizer = load_tokenizer(Path(request["model_folder"]))
        return tried(tokenizer, request) if request["split"] else counted(tokenizer, request)
    except TokenizerUnusable as error:
        return {"field": "base_model", "fault": str(error)}
    except MemoryError:
        too_much = f"its chat template or tokenizer needs more than {MEMORY_BYTES >> 30} GiB of memory"
        return {"field": "base_model", "fault": too_much}


def counted(tokenizer: Any, request: dict[str, Any]) -> dict[str, Any]:
    return asdict(count_tokens(tokenizer, rows(request), request["max_seq_length"]))


def tried(tokenizer: Any, request: dict[str, Any]) -> dict[str, Any]:
    limit, asked = request["max_seq_length"], request["split"]
    is_large = Path(request["dataset_path"]).stat().st_size > MAX_SPLIT_BYTES
    return asdict(try_job(tokenizer, rows(request), max_seq_length=limit, is_large=is_large, **asked))


def rows(request: dict[str, Any]) -> Reading:
    return Reading(
        Path(request["dataset_path"]),
        system_prompts=system_prompts(),
        specialization=request["specialization"],
    )


if __name__ == "__main__":
    confine()
    request = json.load(sys.stdin)
    # The parent ends this process earlier, unless it has ended itself.
    cpu_s = math.ceil(request["deadline_s"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    json.dump(answer(request), sys.stdout)
