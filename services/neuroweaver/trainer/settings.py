"""What the Trainer's environment says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuroweaver.mesh.wire.environment import absolute_path, text, variable, whole
from neuroweaver.mesh.wire.settings import Settings
from neuroweaver.trainer.domain.offers import EMBEDDED_JUDGE


@dataclass(frozen=True, kw_only=True)
class TrainerSettings(Settings):
    service: str = "trainer"
    data_folder: Path = variable(
        "NEUROWEAVER_DATA",
        absolute_path,
        lambda reading: reading["home"] / "data",
        shown_default="data under NEUROWEAVER_HOME",
        help="Where data sets lie.",
    )
    slots: int = variable(
        "NEUROWEAVER_TRAINER_SLOTS", whole(1, "a number of workers"), 1, help="How many jobs run at once."
    )
    days_kept: int = variable(
        "NEUROWEAVER_TRAINER_DAYS_KEPT",
        whole(1, "a number of days", most=36500),
        90,
        help="Days after its end for which a job's events, log and folder stay; what it registered is kept.",
    )
    feedback_model: str = variable(
        "NEUROWEAVER_FEEDBACK_MODEL", text, EMBEDDED_JUDGE, help="The judge of a job that names none."
    )

    @property
    def worker_socket(self) -> Path:
        """Where workers report: in the home, so that one finds the trainer again that was started anew."""
        return self.home / "run" / "trainer.sock"

    # What they hold is the worker's business, and its alone.
    has_judge_key: bool = variable(
        "OPENAI_API_KEY", bool, default=False, shown_default="none", help="Shown to the endpoint that judges."
    )
    has_judge_url: bool = variable(
        "OPENAI_BASE_URL",
        bool,
        default=False,
        shown_default="",
        help="An OpenAI-compatible endpoint that judges.",
    )
