"""What the Experiment service's environment says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from neuroweaver.mesh.wire.environment import variable, whole
from neuroweaver.mesh.wire.settings import Settings

MEMORY_MIB: Final = 1024


@dataclass(frozen=True, kw_only=True)
class ExperimentSettings(Settings):
    service: str = "experiment"
    experiment_memory_mib: int = variable(
        "NEUROWEAVER_EXPERIMENT_MEMORY_MIB",
        whole(1, "a number of MiB"),
        MEMORY_MIB,
        help="Memory for the units of all experiments; those used longest ago are dropped.",
    )
