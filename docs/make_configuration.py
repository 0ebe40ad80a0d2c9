"""Writes configuration.md from the settings of the services: `python docs/make_configuration.py`, or `make gen`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from neuroweaver.deployer.settings import DeployerSettings
from neuroweaver.experiment.settings import ExperimentSettings
from neuroweaver.mesh.server.http_limits import HttpLimits
from neuroweaver.mesh.wire.environment import Variable, variables
from neuroweaver.mesh.wire.settings import ADDRESS, Settings
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.trainer.settings import TrainerSettings
from neuroweaver.trainer.worker.judging.settings import JudgeSettings

PAGE: Final = Path(__file__).with_name("configuration.md")

SECTIONS: Final = (
    (
        "All services",
        Settings,
        "A service's name stands for SERVICE: REGISTRY, TRAINER, DEPLOYER or EXPERIMENT.",
    ),
    ("Registry", RegistrySettings, ""),
    ("Trainer", TrainerSettings, ""),
    ("Judge", JudgeSettings, "Read by a job's worker."),
    ("Deployer", DeployerSettings, ""),
    ("Deployer in Kubernetes", ClusterSettings, ""),
    ("Experiment", ExperimentSettings, ""),
    (
        "HTTP of model servers and routers",
        HttpLimits,
        "Read by the Deployer, for itself and for pods. In a cluster a change rolls every deployment's router and own model servers, not vLLM.",
    ),
)
# Read by other programs than the services' own settings.
OTHERS: Final = (
    ("WANDB_API_KEY", "", "Fine-tuning is also reported to Weights & Biases, where `wandb` is installed."),
    ("OMP_WAIT_POLICY", "PASSIVE for workers and model servers", "ACTIVE is faster on a machine of the trainer's own, and crawls on a busy one."),
    ("CUDA_VISIBLE_DEVICES", "all", "The GPUs that the deployer gives to local replicas. It knows nothing of training jobs: leave out theirs."),
    ("KEEP", "", "`KEEP=1 make demo` leaves the services running."),
)  # fmt: skip


def page() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Configuration"
    yield ""
    yield "Services and the command line are configured by environment variables. A service with a wrong value does not start, and names the variable."
    yield ""
    yield "<!-- Made by docs/make_configuration.py from the settings; edit those. -->"
    shown: set[str] = set()
    for title, kind, remark in SECTIONS:
        own = [each for each in _variables(kind) if each.name not in shown]
        shown |= {each.name for each in own}
        yield from ("", f"## {title}", "", *([remark, ""] if remark else []))
        yield from _table(
            (each.name.replace("{SERVICE}", "<SERVICE>"), _default(each), each.help) for each in own
        )
    yield from ("", "## Others", "")
    yield from _table(OTHERS)


def _variables(kind: Any) -> Iterator[Variable]:
    yield from variables(kind).values()
    if kind is Settings:
        yield ADDRESS


def _default(each: Variable) -> str:
    if each.shown_default or each.parse is bool:
        return each.shown_default
    if callable(each.default) or each.default in ("", None):
        return ""
    return str(each.default).lower() if isinstance(each.default, bool) else f"`{each.default}`"


def _table(rows: Any) -> Iterator[str]:
    yield "| variable | default | meaning |"
    yield "|---|---|---|"
    for name, default, meaning in rows:
        yield f"| `{name}` | {default} | {meaning} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}: {sum(len(variables(kind)) for _, kind, _ in SECTIONS)} variables\n")
