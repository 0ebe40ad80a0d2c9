"""The question before what is not easily taken back."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from neuroweaver.client.cli.failures import BadInput, Exit, Failure

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def confirm(question: str, *, yes: bool, as_json: bool) -> None:
    """Returns if a person on a terminal agrees, or if `yes` was given.

    Raises BadInput where nobody can be asked, Failure if the person does not agree.
    """
    refuse_unasked(yes=yes, as_json=as_json)
    if yes:
        return
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Failure(Exit.FAILED, "nothing was changed", code="DECLINED")


def refuse_unasked(*, yes: bool, as_json: bool) -> None:
    """Raises BadInput if nobody agreed beforehand and nobody can be asked."""
    if not yes and (as_json or not sys.stdin.isatty()):
        raise BadInput("is needed where nobody can be asked: with --json, or without a terminal", "--yes")
