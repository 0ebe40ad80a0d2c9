"""`neuroweaver experiment …`. Begin with `commands`."""

from __future__ import annotations

from neuroweaver.cli.terminal.lazy import LazyGroup

app = LazyGroup(
    panels={
        "Look": {
            "experiment.commands": "list show assign",
            "experiment.results": "watch results",
            "experiment.plan": "plan",
        },
        "Change": {"experiment.commands": "create start pause stop weights conclude"},
    }
)
