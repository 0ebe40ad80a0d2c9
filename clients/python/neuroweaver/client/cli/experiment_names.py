"""How a command names an experiment."""

from __future__ import annotations

from typing import Annotated

import typer

Test = Annotated[str, typer.Argument(metavar="TEST", help="The experiment's id.", show_default=False)]
