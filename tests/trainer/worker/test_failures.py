from __future__ import annotations

import errno

import grpc
import pytest
import torch

from neuroweaver.artifacts.transfer import Refused
from neuroweaver.base_models.rendering import TemplateRefuses
from neuroweaver.base_models.tokenizer import TokenizerUnusable
from neuroweaver.trainer.worker.failures import BaseModelChanged, DatasetChanged, explain
from neuroweaver.trainer.worker.judging.judge import JudgeUnavailable
from neuroweaver.trainer.worker.models.lora import UnknownLayers
from neuroweaver.trainer.worker.process.optimizer import TrainingDiverged
from neuroweaver.trainer.worker.reward.preferences import NotEnoughFeedback
from neuroweaver.trainer.worker.sft.finetune import NothingToLearn
from neuroweaver.v1 import trainer_pb2 as pb


class Refusal(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "told"

    def trailing_metadata(self) -> tuple[()]:
        return ()


@pytest.mark.parametrize(
    ("error", "reason", "is_resumable"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "OUT_OF_MEMORY", True),
        (MemoryError(), "OUT_OF_MEMORY", True),
        (OSError(errno.ENOSPC, "No space left on device"), "DISK_FULL", True),
        (TrainingDiverged("the loss is nan at step 3"), "DIVERGED", True),
        (JudgeUnavailable("wrong key"), "JUDGE_UNAVAILABLE", True),
        (NotEnoughFeedback("too few pairs"), "NOT_ENOUGH_FEEDBACK", False),
        (NothingToLearn("no answer"), "NO_USABLE_ROWS", False),
        (TemplateRefuses("roles must alternate"), "CHAT_TEMPLATE_REFUSED", False),
        (TokenizerUnusable("cannot be loaded"), "BASE_MODEL_UNAVAILABLE", True),
        (UnknownLayers("no such layer"), "UNKNOWN_LAYERS", False),
        (DatasetChanged("changed"), "DATASET_CHANGED", False),
        (BaseModelChanged("changed"), "BASE_MODEL_CHANGED", False),
        (Refusal(grpc.StatusCode.UNAVAILABLE), "REGISTRY_UNAVAILABLE", True),
        (Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED), "REGISTRY_UNAVAILABLE", True),
        (Refusal(grpc.StatusCode.INVALID_ARGUMENT), "REGISTRY_REFUSED", False),
        (Refused("adapter/a.safetensors", "is refused: a pickle"), "REGISTRY_REFUSED", False),
    ],
)
def test_a_foreseen_error_has_its_own_reason(error: Exception, reason: str, is_resumable: bool) -> None:
    failure = explain(error, pb.STAGE_SFT)

    assert (failure.reason, failure.is_resumable, failure.stage) == (reason, is_resumable, pb.STAGE_SFT)
    assert failure.message


@pytest.mark.parametrize(
    ("stage", "advice"), [(pb.STAGE_SFT, "lower learning_rate"), (pb.STAGE_PPO, "lower ppo_learning_rate")]
)
def test_a_diverged_training_names_the_rate_to_lower(stage: pb.Stage.ValueType, advice: str) -> None:
    assert explain(TrainingDiverged("the loss is nan at step 3"), stage).message.endswith(advice)


def test_the_text_of_an_unforeseen_error_is_not_told() -> None:
    failure = explain(RuntimeError("sk-secret in /home/someone"), pb.STAGE_PPO)

    assert failure.reason == "INTERNAL"
    assert "RuntimeError" in failure.message
    assert "secret" not in failure.message
    assert "/home" not in failure.message
