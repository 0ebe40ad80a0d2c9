"""The question before what is not easily undone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

from typer import Option

from neuroweaver.cli.terminal.failures import BadInput, Exit, Failure

Yes = Annotated[bool, Option("--yes", "-y", help="Do not ask.")]


def asking(*, yes: bool, as_json: bool) -> Callable[[str], None]:
    """Asks a question, and returns if a person agrees; raises Failure otherwise. Not with `yes`.

    Raises BadInput at once where nobody agreed beforehand and nobody can be asked.
    """
    if not yes and (as_json or not sys.stdin.isatty()):
        raise BadInput("is required with --json or without a terminal", "--yes")

    def ask(question: str) -> None:
        if yes:
            return
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise Failure(Exit.FAILED, "nothing was changed", code="DECLINED")

    return ask
