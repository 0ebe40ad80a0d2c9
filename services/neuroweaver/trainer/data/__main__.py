"""Counts the tokens of a data set in a process of its own: `python -m neuroweaver.trainer.data`.

The chat template and the tokenizer of a base model are code and data of others: they can loop, or fill the
memory. `control/counting.py` starts this process, bounds its time, and gives it a request on stdin.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from neuroweaver.base_models.confinement import MEMORY_BYTES, confine
from neuroweaver.base_models.rendering import TemplateRefuses
from neuroweaver.trainer.data.dataset import Reading
from neuroweaver.trainer.data.files import DatasetError
from neuroweaver.trainer.data.specialization import system_prompts
from neuroweaver.trainer.data.split import split
from neuroweaver.trainer.data.tokens import count_tokens
from neuroweaver.trainer.data.trial import (
    Plan,
    Trial,
    base_model_faults,
    try_rows,
    try_split,
    unknown_words,
)

# The rows of a larger file are not kept, which a split needs: as objects, short ones take 30 times as much.
MAX_SPLIT_BYTES: Final = 32 << 20


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """A count or a trial, and the digest of the file that was read; or the field at fault, and why."""
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
        return tried(tokenizer, request) if "plan" in request else counted(tokenizer, request)
    except (TokenizerUnusable, TemplateRefuses) as error:
        return {"field": "base_model", "fault": str(error)}
    except MemoryError:
        too_much = f"its chat template or tokenizer needs more than {MEMORY_BYTES >> 30} GiB of memory"
        return {"field": "base_model", "fault": too_much}


def counted(tokenizer: Any, request: dict[str, Any]) -> dict[str, Any]:
    vocab_size, name = request["vocab_size"], request["base_model"]
    rows = reading(request)
    count = count_tokens(tokenizer, rows, request["max_seq_length"], vocab_size=vocab_size)
    faults = [*base_model_faults(tokenizer, name, vocab_size), *unknown_words([count], name)]
    return {
        "count": asdict(count),
        "faults": [fault.message for fault in faults],
        "digest": rows.inspection.digest,
    }


def tried(tokenizer: Any, request: dict[str, Any]) -> dict[str, Any]:
    plan, rows = Plan(**request["plan"]), reading(request)
    enough_s: float = request["enough_s"]

    def goes_on() -> bool:
        return time.monotonic() < enough_s

    if Path(request["dataset_path"]).stat().st_size > MAX_SPLIT_BYTES:
        return {"trial": asdict(try_rows(tokenizer, rows, plan, goes_on)), "digest": None}
    kept = tuple(takewhile(lambda _: goes_on(), rows))
    if not goes_on():
        return {"trial": asdict(Trial(faults=())), "digest": None}
    trial = try_split(tokenizer, *split(kept, plan.validation_fraction, plan.seed), plan, goes_on)
    return {"trial": asdict(trial), "digest": rows.inspection.digest}


def reading(request: dict[str, Any]) -> Reading:
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
