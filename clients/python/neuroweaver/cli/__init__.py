"""The command `neuroweaver`."""

from __future__ import annotations

from neuroweaver.cli.program import main

__all__ = ["main"]
