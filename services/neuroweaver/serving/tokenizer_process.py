"""Makes token ids of prompts, one after the other: `python -m neuroweaver.serving.tokenizer_process FOLDER`.

Template and tokenizer are code and data of others, and prompts anybody's: they may loop or fill the memory,
which then ends this process alone. `tokenizing` starts it; messages are JSON behind their length in 4 bytes.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, BinaryIO, Final

from neuroweaver.base_models import confinement
from neuroweaver.serving.tokenizing import CPU_S

_START_CPU_S: Final = 60


def serve(folder: Path, requests: BinaryIO, answers: BinaryIO) -> None:
    """Says first that it is ready; ends with its requests."""
    from neuroweaver.base_models.tokenizer import load_tokenizer  # noqa: PLC0415 (once torch is hidden)
    from neuroweaver.serving import prompts  # noqa: PLC0415
    from neuroweaver.serving.requests import ApiError  # noqa: PLC0415

    tokenizer = load_tokenizer(folder)
    confinement.limit_cpu(CPU_S)
    prompts.try_template(tokenizer)
    confinement.write(answers, {})
    while (request := confinement.read(requests)) is not None:
        confinement.limit_cpu(CPU_S)
        try:
            answer: dict[str, Any] = {"ids": prompts.token_ids(tokenizer, **request)}
        except ApiError as error:
            answer = {"refusal": dataclasses.asdict(error)}
        except MemoryError:
            answer = {"is_too_costly": True}
        confinement.write(answers, answer)


def main() -> None:
    confinement.confine()
    confinement.limit_cpu(_START_CPU_S)
    serve(Path(sys.argv[1]), *confinement.pipes())


if __name__ == "__main__":
    main()
