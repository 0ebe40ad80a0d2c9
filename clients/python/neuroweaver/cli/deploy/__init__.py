"""`neuroweaver deploy …`. Begin with `commands`."""

from __future__ import annotations

from neuroweaver.cli.terminal.lazy import LazyGroup

app = LazyGroup(
    panels={
        "Look": {
            "deploy.commands": "plan list status",
            "deploy.watch": "watch logs",
            "deploy.health": "health metrics",
        },
        "Change": {
            "deploy.commands": "apply",
            "deploy.change": "scale rollback delete",
            "deploy.health": "thresholds switch",
        },
    }
)
