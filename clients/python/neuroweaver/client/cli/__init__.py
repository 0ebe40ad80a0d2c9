"""The command `neuroweaver`."""

from __future__ import annotations

from neuroweaver.client.cli.program import main

__all__ = ["main"]
