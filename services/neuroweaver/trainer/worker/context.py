"""What the stages of a job share: its configuration, where it runs, its data and the models over its base."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch

from neuroweaver.base_models.folders import Digests
from neuroweaver.trainer.data.questions import Question
from neuroweaver.trainer.data.rows import Example
from neuroweaver.trainer.data.specialization import Specialization, load_specializations
from neuroweaver.trainer.worker.judging.choose import judge_named
from neuroweaver.trainer.worker.judging.judge import Judge
from neuroweaver.trainer.worker.models.base import load
from neuroweaver.trainer.worker.models.lora import load_policy
from neuroweaver.trainer.worker.process.checkpoints import checkpoint_step, last_checkpoint
from neuroweaver.trainer.worker.process.stages import Stages
from neuroweaver.v1 import registry_pb2_grpc
from neuroweaver.v1 import trainer_pb2 as pb

QUANTIZATIONS: Final[Mapping[int, Any]] = {
    pb.QUANTIZATION_NONE: "none",
    pb.QUANTIZATION_NF4: "nf4",
    pb.QUANTIZATION_INT8: "int8",
}
DTYPES: Final = {
    pb.MIXED_PRECISION_NONE: torch.float32,
    pb.MIXED_PRECISION_BF16: torch.bfloat16,
    pb.MIXED_PRECISION_FP16: torch.float16,
}


@dataclass(frozen=True)
class Prepared:
    """What the first stage holds in memory for the others. questions: that RLAIF asks, if it is wanted."""

    model_folder: Path
    digests: Digests
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    questions: tuple[Question, ...] = ()


@dataclass
class JobContext:
    """A job where it runs. folder: the job's own; data_folder: where data sets lie."""

    job: pb.TrainingJob
    stages: Stages
    folder: Path
    home: Path
    data_folder: Path
    registry: registry_pb2_grpc.RegistryServiceStub
    environ: Mapping[str, str]
    prepared: Prepared = field(init=False)

    @property
    def config(self) -> pb.TrainingConfig:
        return self.job.config

    @property
    def is_resumed(self) -> bool:
        return self.job.attempt > 1

    @property
    def specialization(self) -> Specialization:
        return load_specializations()[self.config.specialization]

    @cached_property
    def judge(self) -> Judge:
        return judge_named(self.config.feedback_model, self.environ, cache=self.folder / "judge-cache.jsonl")

    def report_resume(self, folder: Path) -> None:
        """Report the checkpoint in `folder` from which a resumed stage goes on, if there is one."""
        if self.is_resumed and (checkpoint := last_checkpoint(folder)):
            self.stages.rewound(checkpoint_step(checkpoint))

    def load_base(self) -> tuple[Any, Any]:
        """The base model and its tokenizer."""
        return load(
            self.prepared.model_folder,
            quantization=QUANTIZATIONS[self.config.quantization],
            dtype=DTYPES[self.config.mixed_precision],
            device="cuda" if torch.cuda.is_available() else "cpu",
        )

    @contextmanager
    def base_model(self) -> Iterator[tuple[Any, Any]]:
        """The base model and its tokenizer, gone from memory after the block."""
        yield self.load_base()
        gc.collect()

    @contextmanager
    def tuned_model(self, adapter: Path, *, is_trainable: bool = False) -> Iterator[tuple[Any, Any]]:
        """The base model with an adapter; trainable, with a frozen copy of it as the reference."""
        with self.base_model() as (model, tokenizer):
            yield load_policy(model, adapter, is_trainable=is_trainable), tokenizer
