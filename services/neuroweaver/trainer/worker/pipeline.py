"""The main job: data, fine-tuning, AI feedback, reward model, PPO, validation, registration.

Each stage leaves its result in the job's folder, so a resumed job begins with the first that is not whole.
Models are loaded where they are needed and dropped again: a resumed stage sees what it would have seen.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch

from neuroweaver.base_models.catalog import resolve
from neuroweaver.base_models.folders import Digests, digests, materialize
from neuroweaver.mesh.machine.files import read_jsonl, write_jsonl
from neuroweaver.trainer.data import dataset
from neuroweaver.trainer.data.rows import Example
from neuroweaver.trainer.data.specialization import Specialization, load_specializations, system_prompts
from neuroweaver.trainer.worker.data.questions import Question, choose, messages_of, without_system
from neuroweaver.trainer.worker.failures import DatasetChanged, explain
from neuroweaver.trainer.worker.judging.choose import judge_named
from neuroweaver.trainer.worker.judging.judge import Judge, JudgeItem
from neuroweaver.trainer.worker.models.base import load
from neuroweaver.trainer.worker.models.generation import generate
from neuroweaver.trainer.worker.policy.adapters import load_policy
from neuroweaver.trainer.worker.policy.stage import optimize_policy
from neuroweaver.trainer.worker.process.checkpoints import checkpoint_step, checkpoints
from neuroweaver.trainer.worker.process.monitor import Monitor, Stopped
from neuroweaver.trainer.worker.process.stages import Result, Stages
from neuroweaver.trainer.worker.registration import Registration, register
from neuroweaver.trainer.worker.reward import training
from neuroweaver.trainer.worker.reward.preferences import NotEnoughFeedback
from neuroweaver.trainer.worker.sft import finetune
from neuroweaver.trainer.worker.validation.compare import VERDICTS, evaluate
from neuroweaver.v1 import common_pb2, registry_pb2_grpc
from neuroweaver.v1 import trainer_pb2 as pb

_LOG: Final = logging.getLogger(__name__)

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
TRAINER_PRECISIONS: Final[Mapping[int, Any]] = {
    pb.MIXED_PRECISION_NONE: "no",
    pb.MIXED_PRECISION_BF16: "bf16",
    pb.MIXED_PRECISION_FP16: "fp16",
}
# Optimizer steps between two checkpoints of fine-tuning.
SAVE_EVERY: Final = 10
POLICY_SOURCE: Final = "model"
DATASET_SOURCE: Final = "data set"
# Feedback below this cannot teach a reward model anything that holds for other prompts.
MIN_PAIRS: Final = 8
SAMPLING_TEMPERATURE: Final = 1.0


@dataclass(frozen=True)
class Surroundings:
    """Where the job runs. folder: the job's own; data_folder: where data sets lie."""

    folder: Path
    home: Path
    data_folder: Path
    registry: registry_pb2_grpc.RegistryServiceStub
    environ: Mapping[str, str]


@dataclass
class Prepared:
    """What the first stage holds in memory for the others."""

    model_folder: Path
    digests: Digests
    train: tuple[Example, ...]
    validation: tuple[Example, ...]


@dataclass
class Pipeline:
    job: pb.TrainingJob
    at: Surroundings
    stages: Stages
    prepared: Prepared = field(init=False)

    @property
    def config(self) -> pb.TrainingConfig:
        return self.job.config

    @property
    def specialization(self) -> Specialization:
        return load_specializations()[self.config.specialization]

    @cached_property
    def judge(self) -> Judge:
        cache = self.at.folder / "judge-cache.jsonl"
        return judge_named(self.config.feedback_model, self.at.environ, cache=cache)

    def run(self) -> pb.TrainingResult:
        """Raises Stopped, and whatever makes the job fail (see `failures`)."""
        self.stages.run(
            pb.STAGE_PREPARING, "reads the data and makes the base model ready", self.prepare, again=True
        )
        tuned = self.stages.run(
            pb.STAGE_SFT, f"fine-tunes on {len(self.prepared.train)} examples", self.fine_tune
        )
        result = pb.TrainingResult(model_id=self.config.model_name, judge=self.judge.name)
        adapter = self._improve(self.at.folder / tuned["adapter"], result)
        validation = self.stages.run(
            pb.STAGE_VALIDATION,
            f"compares with the base model on {len(self.specialization.evaluation_prompts)} unseen prompts",
            lambda monitor: self.validate(adapter, monitor),
        )
        self._describe(result, tuned, validation)
        registered = self.stages.run(
            pb.STAGE_REGISTERING,
            f"registers a version of {self.config.model_name}",
            lambda _: register(self._registration(adapter, result), self.at.registry),
        )
        result.version = registered["version"]
        result.artifacts.update(registered["artifacts"])
        result.stage_seconds["REGISTERING"] = registered["seconds"]
        return result

    def prepare(self, monitor: Monitor) -> Result:
        base = resolve(self.config.base_model, home=self.at.home)
        path = dataset.locate(self.config.dataset_path, self.at.data_folder)
        read = dataset.read(path, system_prompts=system_prompts(), specialization=self.config.specialization)
        if read.digest != self.job.dataset_digest:
            raise DatasetChanged(
                f"{self.config.dataset_path} has changed since the job was accepted; start a new job with it"
            )
        dataset.require(read)
        train, validation = dataset.split(read.examples, self.config.validation_fraction, self.config.seed)
        if not train or not validation:
            raise DatasetChanged(f"{self.config.dataset_path} needs at least two different rows")
        folder = materialize(base, self.at.home, monitor.check)
        self.prepared = Prepared(folder, digests(folder), train, validation)
        return {"rows": read.rows, "train_rows": len(train), "validation_rows": len(validation)}

    def fine_tune(self, monitor: Monitor) -> Result:
        folder = self.at.folder / "sft"
        is_resumed = self.job.attempt > 1
        if is_resumed and (kept := checkpoints(folder)):
            self.stages.rewound(checkpoint_step(kept[-1]))
        with self._base() as (model, tokenizer):
            done = finetune.finetune(
                model,
                tokenizer,
                [messages_of(each) for each in self.prepared.train],
                [messages_of(each) for each in self.prepared.validation],
                config=self._sft_config(),
                folder=folder,
                monitor=monitor,
                resume=is_resumed,
            )
        if done.dropped:
            limit = self.config.max_seq_length
            self.stages.notice("ROWS_DROPPED", f"{done.dropped} rows have no answer within {limit} tokens")
        if done.truncated:
            self.stages.notice(
                "ROWS_TRUNCATED",
                f"{done.truncated} rows were longer than {self.config.max_seq_length} tokens and cut",
            )
        return {
            "adapter": str(done.adapter.relative_to(self.at.folder)),
            "loss_before": done.loss_before,
            "loss_after": done.loss_after,
            "tokens": done.tokens,
        }

    def respond(self, adapter: Path, monitor: Monitor) -> Result:
        """Samples responses of the fine-tuned model to questions of the training data."""
        asked = [each for each in self._questions() for _ in range(self.config.responses_per_prompt)]
        with self._tuned(adapter) as (model, tokenizer):
            answers = generate(
                model,
                tokenizer,
                [question.messages for question in asked],
                max_new_tokens=self.config.max_new_tokens,
                temperature=SAMPLING_TEMPERATURE,
                seed=self.config.seed,
                monitor=monitor,
            )
        sampled = [
            {"prompt_id": question.id, "source": POLICY_SOURCE, "text": answer.text}
            for question, answer in zip(asked, answers, strict=True)
        ]
        # The data's own answer competes as well: from a model that has little to offer yet come pairs that
        # differ by chance alone, and a reward model learns nothing from them.
        references = [
            {"prompt_id": question.id, "source": DATASET_SOURCE, "text": question.reference}
            for question in self._questions()
        ]
        write_jsonl(self.at.folder / "responses.jsonl", sampled + references)
        return {
            "prompts": len(asked) // self.config.responses_per_prompt,
            "responses": len(answers),
            "tokens": sum(len(answer.tokens) for answer in answers),
            "finished_fraction": sum(answer.finished for answer in answers) / len(answers),
        }

    def judge_responses(self, monitor: Monitor) -> Result:
        questions = {question.id: question for question in self._questions()}
        responses = list(read_jsonl(self.at.folder / "responses.jsonl"))
        items = [
            JudgeItem(questions[each["prompt_id"]].text, each["text"], questions[each["prompt_id"]].reference)
            for each in responses
        ]
        judgements = self.judge.score(items, self.specialization.rubric, monitor)
        write_jsonl(
            self.at.folder / "feedback.jsonl",
            (
                {**response, "score": judged and judged.score, "reason": judged and judged.reason}
                for response, judged in zip(responses, judgements, strict=True)
            ),
        )
        # The numbers speak of the model's responses alone.
        own = [
            judged
            for response, judged in zip(responses, judgements, strict=True)
            if response["source"] == POLICY_SOURCE
        ]
        scores = [judged.score for judged in own if judged is not None]
        good = sum(score >= self.config.rlaif_threshold for score in scores)
        return {
            "judged": len(scores),
            "missing": judgements.count(None),
            "mean_score": sum(scores) / len(scores) if scores else 0.0,
            "good_fraction": good / len(scores) if scores else 0.0,
            "judge_tokens": self.judge.usage.tokens,
        }

    def train_reward_model(self, monitor: Monitor) -> Result:
        questions = {question.id: question for question in self._questions()}
        groups = training.group_feedback(
            read_jsonl(self.at.folder / "feedback.jsonl"),
            lambda prompt_id: without_system(questions[prompt_id].messages),
        )
        train, heldout = training.pairs_from_feedback(
            groups, rlaif_threshold=self.config.rlaif_threshold, seed=self.config.seed
        )
        if len(train) < MIN_PAIRS or not heldout:
            raise NotEnoughFeedback(
                f"the feedback gives {len(train)} preference pairs to learn from and {len(heldout)} to check "
                f"with; at least {MIN_PAIRS} and 1 are needed: raise rlaif_samples or responses_per_prompt"
            )
        done = training.train_reward_model(
            self.prepared.model_folder,
            train,
            heldout,
            config=self._reward_config(),
            folder=self.at.folder / "reward_model",
            monitor=monitor,
            resume=self.job.attempt > 1,
            **self._precision(),
        )
        if done.dropped:
            self.stages.notice("PAIRS_DROPPED", f"{done.dropped} preference pairs were too long and left out")
        return {
            "folder": str(done.folder.relative_to(self.at.folder)),
            "accuracy": done.accuracy,
            "accuracy_lower": done.lower,
            "accuracy_upper": done.upper,
            "length_rule_accuracy": done.length_rule_accuracy,
            "train_pairs": done.train_pairs,
            "heldout_pairs": done.heldout_pairs,
            "loss_before": done.loss_before,
            "loss_after": done.loss_after,
        }

    def optimize(self, adapter: Path, scorer_folder: Path, monitor: Monitor) -> Result:
        with self._tuned(adapter, is_trainable=True) as (model, tokenizer):
            scorer = training.RewardModel.load(scorer_folder, self.prepared.model_folder, **self._precision())
            return optimize_policy(
                model,
                tokenizer,
                scorer,
                [question.messages for question in self._questions()],
                self.config,
                self.at.folder / "ppo",
                monitor,
                self.stages,
            )

    def validate(self, adapter: Path, monitor: Monitor) -> Result:
        held_out = [messages_of(each) for each in self.prepared.validation]
        with self._tuned(adapter) as (model, tokenizer):
            samples, measured = evaluate(
                model, tokenizer, self.judge, self.specialization, held_out, self.config, monitor
            )
        write_jsonl(self.at.folder / "evaluation.jsonl", samples)
        return measured

    def _improve(self, adapter: Path, result: pb.TrainingResult) -> Path:
        """The adapter to register: RLAIF's, or the given one where it was not asked for or failed."""
        if not self.config.enable_rlaif:
            result.rlaif_outcome = pb.RLAIF_OUTCOME_NOT_REQUESTED
            return adapter
        try:
            improved = self._learn_from_feedback(adapter, result)
        except Stopped:
            raise
        except Exception as error:
            if not self.config.fall_back_to_sft:
                raise
            _LOG.exception("RLAIF failed")
            failure = explain(error, self.stages.current)
            stage = pb.Stage.Name(failure.stage).removeprefix("STAGE_")
            message = (
                f"RLAIF failed in stage {stage}, so the fine-tuned model is registered: {failure.message}"
            )
            self.stages.notice("RLAIF_FELL_BACK", message)
            result.rlaif_outcome = pb.RLAIF_OUTCOME_FELL_BACK_TO_SFT
            result.rlaif_failure = f"{failure.reason}: {failure.message}"
            result.ClearField("reward_model")
            return adapter
        result.rlaif_outcome = pb.RLAIF_OUTCOME_APPLIED
        return improved

    def _learn_from_feedback(self, adapter: Path, result: pb.TrainingResult) -> Path:
        count = self.config.rlaif_samples * self.config.responses_per_prompt
        run = self.stages.run
        run(
            pb.STAGE_RESPONSES,
            f"samples up to {count} responses",
            lambda monitor: self.respond(adapter, monitor),
        )
        run(pb.STAGE_FEEDBACK, f"the judge {self.judge.name} scores them", self.judge_responses)
        scorer = run(pb.STAGE_REWARD_MODEL, "learns the judge's preferences", self.train_reward_model)
        result.reward_model.CopyFrom(
            pb.RewardModelQuality(
                accuracy=scorer["accuracy"],
                accuracy_interval=common_pb2.Interval(
                    lower=scorer["accuracy_lower"], upper=scorer["accuracy_upper"], confidence=0.95
                ),
                length_rule_accuracy=scorer["length_rule_accuracy"],
                train_pairs=scorer["train_pairs"],
                heldout_pairs=scorer["heldout_pairs"],
            )
        )
        scorer_folder = self.at.folder / scorer["folder"]
        optimized = run(
            pb.STAGE_PPO,
            f"improves the policy over {self.config.ppo_steps} steps",
            lambda monitor: self.optimize(adapter, scorer_folder, monitor),
        )
        result.policy_optimization.CopyFrom(
            pb.PolicyOptimization(
                reward_first=optimized["reward_first"],
                reward_last=optimized["reward_last"],
                kl_last=optimized["kl_last"],
                steps=optimized["steps"],
                stop_reason=optimized["stop_reason"],
            )
        )
        return self.at.folder / str(optimized["adapter"])

    def _describe(self, result: pb.TrainingResult, tuned: Result, validation: Result) -> None:
        """Fill in what the stages measured."""
        result.loss_before, result.loss_after = validation["loss_before"], validation["loss_after"]
        result.perplexity_before = validation["perplexity_before"]
        result.perplexity_after = validation["perplexity_after"]
        result.win_rate.CopyFrom(
            pb.WinRate(
                wins=validation["wins"],
                losses=validation["losses"],
                ties=validation["ties"],
                missing=validation["missing"],
                rate=validation["win_rate"],
                interval=common_pb2.Interval(
                    lower=validation["win_rate_lower"],
                    upper=validation["win_rate_upper"],
                    confidence=validation["confidence"],
                ),
            )
        )
        for sample in read_jsonl(self.at.folder / "evaluation.jsonl"):
            sample["verdict"] = VERDICTS[sample["verdict"]]
            result.samples.append(pb.JudgedSample(**sample))
        result.metrics["sft_loss_before"] = tuned["loss_before"]
        result.metrics["sft_loss_after"] = tuned["loss_after"]
        result.metrics["base_score"] = validation["base_score"]
        result.metrics["tuned_score"] = validation["tuned_score"]
        result.output_dir = str(self.at.folder)
        result.stage_seconds.update(self.stages.seconds())

    def _registration(self, adapter: Path, result: pb.TrainingResult) -> Registration:
        return Registration(
            job=self.job, result=result, adapter=adapter, folder=self.at.folder, digests=self.prepared.digests
        )

    def _questions(self) -> list[Question]:
        """The prompts of RLAIF: single questions of the training split. Raises NotEnoughFeedback."""
        chosen = choose(self.prepared.train, self.config.specialization, self.config.rlaif_samples)
        if len(chosen) < 2:
            raise NotEnoughFeedback("the data set has no questions with answers to learn preferences on")
        return chosen

    def _sft_config(self) -> finetune.SFTConfig:
        config = self.config
        return finetune.SFTConfig(
            lora_r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=tuple(config.target_modules),
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            max_seq_length=config.max_seq_length,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            gradient_checkpointing=config.gradient_checkpointing,
            mixed_precision=TRAINER_PRECISIONS[config.mixed_precision],
            save_steps=SAVE_EVERY,
            seed=config.seed,
        )

    def _reward_config(self) -> training.RewardConfig:
        return training.RewardConfig(
            epochs=self.config.reward_model_epochs,
            max_seq_length=self.config.max_seq_length,
            seed=self.config.seed,
        )

    @contextmanager
    def _base(self) -> Iterator[tuple[Any, Any]]:
        """The base model and its tokenizer, gone from memory after the block."""
        yield load(self.prepared.model_folder, **self._precision())
        gc.collect()

    def _precision(self) -> dict[str, Any]:
        """How the base model's weights are held."""
        return {
            "quantization": QUANTIZATIONS[self.config.quantization],
            "dtype": DTYPES[self.config.mixed_precision],
            "device": device(),
        }

    @contextmanager
    def _tuned(self, adapter: Path, *, is_trainable: bool = False) -> Iterator[tuple[Any, Any]]:
        """The base model with an adapter; trainable, with a frozen copy of it as the reference."""
        with self._base() as (model, tokenizer):
            yield load_policy(model, adapter, is_trainable=is_trainable), tokenizer


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
