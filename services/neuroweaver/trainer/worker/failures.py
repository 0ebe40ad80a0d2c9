"""Why a job failed, in words for its owner: a stable reason, one sentence, never a traceback."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final

import grpc
import torch

from neuroweaver.artifacts.transfer import Refused
from neuroweaver.base_models.folders import BaseModelUnavailable
from neuroweaver.base_models.rendering import TemplateRefuses
from neuroweaver.base_models.tokenizer import TokenizerUnusable
from neuroweaver.mesh.wire.status import describe
from neuroweaver.trainer.data.trial import Fault
from neuroweaver.trainer.domain.job import OUT_OF_MEMORY_ADVICE
from neuroweaver.trainer.worker.judging.judge import JudgeUnavailable
from neuroweaver.trainer.worker.models.lora import UnknownLayers
from neuroweaver.trainer.worker.process.link import NO_ANSWER
from neuroweaver.trainer.worker.process.optimizer import TrainingDiverged
from neuroweaver.trainer.worker.reward.preferences import NotEnoughFeedback
from neuroweaver.trainer.worker.sft.finetune import NothingToLearn
from neuroweaver.v1 import trainer_pb2 as pb

# No attempt of the same job can succeed.
_FINAL: Final = frozenset(
    {
        "BASE_MODEL_CHANGED",
        "CHAT_TEMPLATE_REFUSED",
        "CONTEXT_TOO_SHORT",
        "DATASET_CHANGED",
        # The same feedback and the same rows would be read again.
        "NOT_ENOUGH_FEEDBACK",
        "NO_USABLE_ROWS",
        "REGISTRY_REFUSED",
        "UNKNOWN_LAYERS",
    }
)
# A full disk passes too.
_PASSING: Final = NO_ANSWER | {grpc.StatusCode.RESOURCE_EXHAUSTED}


class DatasetChanged(Exception):
    """The data set is not the one that was checked when the job was accepted."""


class BaseModelChanged(Exception):
    """The base model is not the one that the job began with."""


class Unfit(Exception):
    """No job can be made of the data and the base model."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


# What may help where a training loop diverged.
_LEARNING_RATES: Final[Mapping[int, str]] = {
    pb.STAGE_SFT: "; lower learning_rate",
    pb.STAGE_PPO: "; lower ppo_learning_rate",
}
_REASONS: Final[Mapping[type[Exception], str]] = {
    BaseModelChanged: "BASE_MODEL_CHANGED",
    BaseModelUnavailable: "BASE_MODEL_UNAVAILABLE",
    DatasetChanged: "DATASET_CHANGED",
    JudgeUnavailable: "JUDGE_UNAVAILABLE",
    NotEnoughFeedback: "NOT_ENOUGH_FEEDBACK",
    NothingToLearn: "NO_USABLE_ROWS",
    Refused: "REGISTRY_REFUSED",
    TokenizerUnusable: "BASE_MODEL_UNAVAILABLE",
    TrainingDiverged: "DIVERGED",
    UnknownLayers: "UNKNOWN_LAYERS",
}


def explain(error: Exception, stage: pb.Stage.ValueType) -> pb.Failure:
    """The failure to report for what a stage raised."""
    fault = error.fault if isinstance(error, Unfit) else None
    reason, message = (fault.reason, fault.message) if fault else _reason(error)
    if reason == "DIVERGED":
        message += _LEARNING_RATES.get(stage, "")
    return pb.Failure(
        reason=reason,
        message=message,
        stage=stage,
        is_resumable=reason not in _FINAL,
    )


def _reason(error: Exception) -> tuple[str, str]:
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return reason, str(error)
    if isinstance(error, TemplateRefuses):
        return "CHAT_TEMPLATE_REFUSED", f"the base model's chat template refuses a conversation: {error}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "OUT_OF_MEMORY", f"the worker ran out of memory; {OUT_OF_MEMORY_ADVICE}"
    if isinstance(error, grpc.RpcError):
        reason = "REGISTRY_UNAVAILABLE" if error.code() in _PASSING else "REGISTRY_REFUSED"
        return reason, f"the Registry: {describe(error)}"
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "DISK_FULL", "the trainer's disk is full; free some space and resume the job"
    # The text of an unforeseen exception is no sentence for people; the job's log has it, without secrets.
    return "INTERNAL", f"an unexpected {type(error).__name__}; the job's log names the cause"
