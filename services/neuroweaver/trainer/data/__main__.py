"""Counts the tokens of a data set in a process of its own: `python -m neuroweaver.trainer.data`.

The chat template and the tokenizer of a base model are code and data of others: they can loop, or fill the
memory. `control/counting.py` starts this process, bounds its time, and gives it a request on stdin.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from neuroweaver.base_models.chat_template import chat_template
from neuroweaver.base_models.confinement import MEMORY_BYTES, confine, limit_cpu
from neuroweaver.base_models.rendering import CPU_S, TemplateRefuses
from neuroweaver.trainer.data.dataset import Reading
from neuroweaver.trainer.data.files import DatasetError
from neuroweaver.trainer.data.rows import Example
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


@dataclass(frozen=True)
class Watch:
    """Bounds the processor's time of each chat, and notes whose chat it is, for when that ends the process.

    place: a file for the row's line, 0 for a chat of no row. end_s: of the processor's time of all.
    """

    place: int
    end_s: float

    def begin(self, line: int) -> None:
        os.pwrite(self.place, f"{line:20}".encode(), 0)
        limit_cpu(math.ceil(min(CPU_S, self._left_s())))

    def rest(self) -> None:
        limit_cpu(math.ceil(self._left_s()))

    def _left_s(self) -> float:
        return max(0.0, self.end_s - time.process_time())


class Unwatched(Watch):
    """Of a process that whoever asks is ready to wait for."""

    def begin(self, line: int) -> None:
        pass

    def rest(self) -> None:
        pass


UNWATCHED: Final = Unwatched(0, 0)


def each(rows: Iterable[Example], watch: Watch) -> Iterator[Example]:
    """The rows; what is done with one before the next is asked for is watched, and how it is read is not."""
    for row in rows:
        watch.begin(row.line)
        yield row
        watch.rest()


class Rows(list[Example]):
    """Rows that are watched each time they are gone through."""

    def __init__(self, rows: Iterable[Example], watch: Watch) -> None:
        super().__init__(rows)
        self._watch = watch

    def __iter__(self) -> Iterator[Example]:
        return each(super().__iter__(), self._watch)


def answer(request: dict[str, Any], watch: Watch = UNWATCHED) -> dict[str, Any]:
    """A count or a trial, and the digest of the file that was read; or the field at fault, and why."""
    try:
        return with_tokenizer(request, watch) if request["model_folder"] else tried(None, request, watch)
    except DatasetError as error:
        return {"field": error.field, "fault": error.reason}


def with_tokenizer(request: dict[str, Any], watch: Watch) -> dict[str, Any]:
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
        watch.begin(0)
        chat_template(tokenizer)
        watch.rest()
        asked = tried if "plan" in request else counted
        return asked(tokenizer, request, watch)
    except (TokenizerUnusable, TemplateRefuses) as error:
        return {"field": "base_model", "fault": str(error)}
    except MemoryError:
        too_much = f"its chat template or tokenizer needs more than {MEMORY_BYTES >> 30} GiB of memory"
        return {"field": "base_model", "fault": too_much}


def counted(tokenizer: Any, request: dict[str, Any], watch: Watch) -> dict[str, Any]:
    vocab_size, name = request["vocab_size"], request["base_model"]
    rows = reading(request)
    count = count_tokens(tokenizer, each(rows, watch), request["max_seq_length"], vocab_size=vocab_size)
    faults = [*base_model_faults(tokenizer, name, vocab_size), *unknown_words([count], name)]
    return {
        "count": asdict(count),
        "faults": [fault.message for fault in faults],
        "digest": rows.inspection.digest,
    }


def tried(tokenizer: Any, request: dict[str, Any], watch: Watch) -> dict[str, Any]:
    plan, rows = Plan(**request["plan"]), reading(request)
    enough_s: float = request["enough_s"]

    def goes_on() -> bool:
        return time.monotonic() < enough_s

    if Path(request["dataset_path"]).stat().st_size > MAX_SPLIT_BYTES:
        return {"trial": asdict(try_rows(tokenizer, each(rows, watch), plan, goes_on)), "digest": None}
    kept = tuple(takewhile(lambda _: goes_on(), rows))
    if not goes_on():
        return {"trial": asdict(Trial(faults=())), "digest": None}
    train, held_out = (Rows(part, watch) for part in split(kept, plan.validation_fraction, plan.seed))
    trial = try_split(tokenizer, train, held_out, plan, goes_on)
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
    watch = Watch(int(sys.argv[1]), math.ceil(request["deadline_s"]) + 1)
    watch.rest()
    json.dump(answer(request, watch), sys.stdout)
