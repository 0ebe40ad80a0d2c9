"""`neuroweaver model …`. Begin with `commands`."""

from __future__ import annotations

from neuroweaver.cli.terminal.lazy import LazyGroup

app = LazyGroup(
    panels={
        "Look": {
            "model.commands": "list show versions",
            "model.history": "history",
            "model.verify": "verify",
            "model.compare": "compare",
            "model.files": "card",
        },
        "Change": {
            "model.changes": "register create bump state update metrics delete undelete",
            "model.compare": "rollback",
            "model.alias": "alias",
        },
        "Files": {"model.files": "upload download export import"},
    }
)
