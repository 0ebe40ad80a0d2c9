"""What a job can name, and where its worker finds it: a judge or an algorithm is known by its line here.

The values are names for `pkgutil.resolve_name`: the server reads the keys, and must not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from neuroweaver.v1 import trainer_pb2 as pb

JUDGING: Final = "neuroweaver.trainer.worker.judging"
POLICY: Final = "neuroweaver.trainer.worker.policy"

EMBEDDED_JUDGE: Final = "embedded"

JUDGES: Final[Mapping[str, str]] = {
    EMBEDDED_JUDGE: f"{JUDGING}.embedded:EmbeddedJudge",
}
"""Built in, by `feedback_model`. Any other name is that of a model at an OpenAI-compatible endpoint."""

ALGORITHMS: Final[Mapping[int, str]] = {
    pb.ALGORITHM_PPO: f"{POLICY}.ppo_trainer:PPOTrainer",
}
