"""The environment of a shell in which somebody tries the project on free ports, with a home of their own."""

from __future__ import annotations

import os
from pathlib import Path

from ports import free_ports

SERVICES = ("REGISTRY", "TRAINER", "DEPLOYER", "EXPERIMENT")


def environment(home: Path) -> dict[str, str]:
    ports = iter(free_ports(2 * len(SERVICES) + 1))
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("NEUROWEAVER", "OPENAI"))
    }
    chosen = {
        f"NEUROWEAVER_{service}_{kind}": str(next(ports))
        for service in SERVICES
        for kind in ("PORT", "METRICS_PORT")
    }
    return (
        kept
        | chosen
        | {
            "NEUROWEAVER_HOME": str(home),
            "NEUROWEAVER_SERVING_PORT": str(next(ports)),
            "OMP_NUM_THREADS": "1",
        }
    )
