"""A job from its data to a version in the Registry: the stages in their order.

Each stage leaves its result in the job's folder, so a resumed job begins with the first that is not whole.
Models are loaded where they are needed and dropped again: a resumed stage sees what it would have seen.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Final

from neuroweaver.base_models.catalog import resolve
from neuroweaver.base_models.folders import Digests, digests, materialize
from neuroweaver.base_models.rendering import TemplateRefuses
from neuroweaver.base_models.tokenizer import load_tokenizer
from neuroweaver.mesh.machine.files import read_json, read_jsonl, write_json, write_jsonl
from neuroweaver.trainer.data import dataset
from neuroweaver.trainer.data.files import locate
from neuroweaver.trainer.data.specialization import system_prompts
from neuroweaver.trainer.data.split import plain_words, split
from neuroweaver.trainer.data.tokens import try_shapes
from neuroweaver.trainer.data.turns import messages_of
from neuroweaver.trainer.worker import concerns
from neuroweaver.trainer.worker.context import JobContext, Prepared
from neuroweaver.trainer.worker.failures import BaseModelChanged, DatasetChanged
from neuroweaver.trainer.worker.models.lora import require_layers
from neuroweaver.trainer.worker.process.monitor import Monitor
from neuroweaver.trainer.worker.process.stages import Result, as_message, as_result
from neuroweaver.trainer.worker.prompts import (
    choose_questions,
    require_room,
    require_vocabulary,
    room_for_answers,
)
from neuroweaver.trainer.worker.registration import Registration, register
from neuroweaver.trainer.worker.rlaif import improve, questions_of
from neuroweaver.trainer.worker.sft.finetune import NothingToLearn, finetune
from neuroweaver.trainer.worker.validation.compare import evaluate
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import trainer_pb2 as pb

# Of a base model, by the name of their digest.
_PARTS: Final = {
    "base": "weights",
    "tokenizer": "tokenizer",
    "chat_template": "chat template",
    "generation": "generation settings",
}


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
        lambda _: register_over_its_base(registration, context),
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
    train, validation = split(read.examples, config.validation_fraction, config.seed)
    if not train or not validation:
        raise NothingToLearn(f"{config.dataset_path} holds one conversation, with none left to measure on")
    folder = materialize(base, context.home, monitor.check)
    context.prepared = Prepared(folder, digests(folder), train, validation)
    require_same_base(context, context.prepared.digests)
    refuse_unwritable(folder, read, monitor)
    if config.target_modules:
        require_layers(folder, config.target_modules)
    notice_remarks(context, read.inspection)
    notice_seen_prompts(context)
    require_vocabulary(folder, base)
    has_room = room_for_answers(folder, base, config.max_new_tokens)
    require_room(context, has_room)
    if config.enable_rlaif:
        context.prepared = replace(context.prepared, questions=choose_questions(context, has_room))
        if not config.fall_back_to_sft:
            questions_of(context)  # raises before anything is trained
    return {"rows": read.rows, "train_rows": len(train), "validation_rows": len(validation)}


def refuse_unwritable(folder: Path, read: dataset.Dataset, monitor: Monitor) -> None:
    """Raise TemplateRefuses before anything is trained, also where the tokenizer came with this job."""
    for line, reason in try_shapes(load_tokenizer(folder), read.examples, monitor.check).refusals:
        raise TemplateRefuses(f"{read.inspection.path.name}:{line}: {reason}")


def notice_remarks(context: JobContext, inspection: dataset.Inspection) -> None:
    """Say what the job does not use of its data, which nobody need have validated."""
    if inspection.left_out:
        context.stages.notice(
            "ROWS_LEFT_OUT", f"{inspection.left_out} rows were left out: they are marked as not to be learnt"
        )
    if remarks := inspection.remarks:
        shown = "; ".join(dataset.describe(inspection.path, remark) for remark in remarks[:5])
        more = f" (and {len(remarks) - 5} more)" if len(remarks) > 5 else ""
        context.stages.notice("DATA_NOT_USED", shown + more)


def notice_seen_prompts(context: JobContext) -> None:
    """Say which evaluation prompts are learnt: on them the win rate measures memory."""
    learnt = {
        plain_words(message.content)
        for example in context.prepared.train
        for message in example.messages
        if message.role == "user"
    }
    prompts = context.specialization.evaluation_prompts
    if seen := [prompt.id for prompt in prompts if plain_words(prompt.prompt) in learnt]:
        shown = ", ".join(seen[:5]) + (", …" if len(seen) > 5 else "")
        context.stages.notice(
            "EVALUATION_PROMPTS_SEEN",
            f"{len(seen)} of the {len(prompts)} evaluation prompts stand in the training data ({shown}), "
            "so the win rate is partly measured on what was learnt",
        )


def require_same_base(context: JobContext, present: Digests) -> None:
    """Keep the digests of the first attempt's base model, and raise BaseModelChanged if they differ now.

    What earlier attempts trained fits no other weights, and the version names one base model.
    """
    path = context.folder / "base.json"
    now = asdict(present)
    first = read_json(path)
    if first is None:
        write_json(path, now)
        return
    # A job that an earlier version began may have noted fewer parts.
    changed = " and ".join(_PARTS[name] for name in first if first[name] != now[name])
    if changed:
        raise BaseModelChanged(
            f"the {changed} of base model {context.config.base_model} have changed since the job began; "
            "start a new job with it"
        )


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
    context.stages.notices(concerns.of_fine_tuning(outcome, context.config))
    return as_result(outcome, context.folder)


def register_over_its_base(registration: Registration, context: JobContext) -> Result:
    # Each stage loads the base model anew, and its folder may have changed since the attempt began.
    require_same_base(context, digests(context.prepared.model_folder))
    return register(registration, context.registry)


def validate(context: JobContext, adapter: Path, monitor: Monitor) -> Result:
    heldout = [messages_of(example) for example in context.prepared.validation]
    cut_before = context.judge.usage.cut
    with context.tuned_model(adapter) as (model, tokenizer):
        samples, result = evaluate(
            model, tokenizer, context.judge, context.specialization, heldout, context.config, monitor
        )
    write_jsonl(context.folder / "evaluation.jsonl", samples)
    given = [sample[name] for sample in samples for name in ("base_score", "tuned_score", "verdict")]
    cut = context.judge.usage.cut - cut_before
    context.stages.notices(concerns.of_judging(given.count(None), len(given), cut))
    context.stages.notices(concerns.of_validation(samples, result))
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
