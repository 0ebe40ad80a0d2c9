"""A job from its data to a version in the Registry: the stages in their order.

Each stage leaves its result in the job's folder, so a resumed job begins with the first that is not whole.
Models are loaded where they are needed and dropped again: a resumed stage sees what it would have seen.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from neuroweaver.base_models.catalog import resolve
from neuroweaver.base_models.folders import digests, materialize
from neuroweaver.mesh.machine.files import read_jsonl, write_jsonl
from neuroweaver.trainer.data import dataset
from neuroweaver.trainer.data.files import locate
from neuroweaver.trainer.data.specialization import system_prompts
from neuroweaver.trainer.worker.context import JobContext, Prepared
from neuroweaver.trainer.worker.data.questions import messages_of
from neuroweaver.trainer.worker.failures import DatasetChanged
from neuroweaver.trainer.worker.process.monitor import Monitor
from neuroweaver.trainer.worker.process.stages import Result, as_message, as_result
from neuroweaver.trainer.worker.registration import Registration, register
from neuroweaver.trainer.worker.rlaif import improve
from neuroweaver.trainer.worker.sft.finetune import finetune
from neuroweaver.trainer.worker.validation.compare import evaluate
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import trainer_pb2 as pb


def run(context: JobContext) -> pb.TrainingResult:
    """Raises Stopped, and whatever makes the job fail (see `failures`)."""
    config, stages = context.config, context.stages
    stages.run(
        pb.STAGE_PREPARING,
        "reads the data and prepares the base model",
        partial(prepare, context),
        again=True,
    )
    tuned = stages.run(
        pb.STAGE_SFT, f"fine-tunes on {len(context.prepared.train)} examples", partial(fine_tune, context)
    )
    result = pb.TrainingResult(
        model_id=config.model_name, judge=context.judge.name, output_dir=str(context.folder)
    )
    adapter = improve(context, context.folder / tuned["adapter"], result)
    validation = stages.run(
        pb.STAGE_VALIDATION,
        f"compares with the base model on {len(context.specialization.evaluation_prompts)} unseen prompts",
        partial(validate, context, adapter),
    )
    describe(result, context, tuned, validation)
    registration = Registration(context.job, result, adapter, context.folder, context.prepared.digests)
    registered = stages.run(
        pb.STAGE_REGISTERING,
        f"registers a version of {config.model_name}",
        lambda _: register(registration, context.registry),
    )
    result.version = registered["version"]
    result.artifacts.update(registered["artifacts"])
    result.stage_seconds["REGISTERING"] = registered["seconds"]
    return result


def prepare(context: JobContext, monitor: Monitor) -> Result:
    config = context.config
    base = resolve(config.base_model, home=context.home)
    path = locate(config.dataset_path, context.data_folder)
    read = dataset.read(path, system_prompts=system_prompts(), specialization=config.specialization)
    if read.digest != context.job.dataset_digest:
        raise DatasetChanged(
            f"{config.dataset_path} has changed since the job was accepted; start a new job with it"
        )
    dataset.require(read)
    train, validation = dataset.split(read.examples, config.validation_fraction, config.seed)
    if not train or not validation:
        raise DatasetChanged(f"{config.dataset_path} needs at least two different rows")
    folder = materialize(base, context.home, monitor.check)
    context.prepared = Prepared(folder, digests(folder), train, validation)
    return {"rows": read.rows, "train_rows": len(train), "validation_rows": len(validation)}


def fine_tune(context: JobContext, monitor: Monitor) -> Result:
    folder = context.folder / "sft"
    context.report_resume(folder)
    with context.base_model() as (model, tokenizer):
        outcome = finetune(
            model,
            tokenizer,
            [messages_of(example) for example in context.prepared.train],
            [messages_of(example) for example in context.prepared.validation],
            config=context.config,
            folder=folder,
            monitor=monitor,
            resume=context.is_resumed,
        )
    limit = f"max_seq_length, {context.config.max_seq_length} tokens"
    if outcome.dropped:
        context.stages.notice(
            "ROWS_DROPPED", f"{outcome.dropped} rows were left out: no answer begins within {limit}"
        )
    if outcome.truncated:
        context.stages.notice("ROWS_TRUNCATED", f"{outcome.truncated} rows were cut at {limit}")
    return as_result(outcome, context.folder)


def validate(context: JobContext, adapter: Path, monitor: Monitor) -> Result:
    heldout = [messages_of(example) for example in context.prepared.validation]
    with context.tuned_model(adapter) as (model, tokenizer):
        samples, result = evaluate(
            model, tokenizer, context.judge, context.specialization, heldout, context.config, monitor
        )
    write_jsonl(context.folder / "evaluation.jsonl", samples)
    return result


def describe(result: pb.TrainingResult, context: JobContext, tuned: Result, validation: Result) -> None:
    """Fill in what the stages measured."""
    for name in ("loss_before", "loss_after", "perplexity_before", "perplexity_after"):
        setattr(result, name, validation[name])
    interval = common_pb2.Interval(
        lower=validation["win_rate_lower"],
        upper=validation["win_rate_upper"],
        confidence=validation["confidence"],
    )
    result.win_rate.CopyFrom(
        as_message(pb.WinRate, validation, rate=validation["win_rate"], interval=interval)
    )
    for sample in read_jsonl(context.folder / "evaluation.jsonl"):
        verdict = f"VERDICT_{sample['verdict'] or 'unspecified'}".upper()
        result.samples.append(pb.JudgedSample(**sample | {"verdict": verdict}))
    result.metrics["sft_loss_before"] = tuned["loss_before"]
    result.metrics["sft_loss_after"] = tuned["loss_after"]
    result.metrics["base_score"] = validation["base_score"]
    result.metrics["tuned_score"] = validation["tuned_score"]
    result.stage_seconds.update(context.stages.seconds())
