"""What can be known of a job without starting a worker; what it must pass before it is queued."""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from neuroweaver.base_models import layers
from neuroweaver.base_models.catalog import BaseModel, UnknownBaseModel, resolve
from neuroweaver.base_models.folders import BaseModelUnavailable, tokenizer_folder
from neuroweaver.mesh.wire.errors import FailedPrecondition, InvalidArgument, Unimplemented
from neuroweaver.trainer.control import counting
from neuroweaver.trainer.data import dataset
from neuroweaver.trainer.data.files import DatasetError, locate
from neuroweaver.trainer.data.rows import Finding, Severity
from neuroweaver.trainer.data.specialization import load_specializations, system_prompts
from neuroweaver.trainer.data.tokens import TokenCount
from neuroweaver.trainer.data.trial import Plan, Trial
from neuroweaver.trainer.domain.config import fine_tuning_steps, unfit, with_defaults
from neuroweaver.trainer.domain.offers import ALGORITHMS, EMBEDDED_JUDGE, JUDGES
from neuroweaver.v1 import trainer_pb2 as pb

CUDA_DEVICE: Final = Path("/dev/nvidiactl")
# For a base model's chat template, where the call has no deadline.
DEADLINE_S: Final = 60.0
# Where a job's fields stand in the request.
_WITHIN: Final = "config."


@dataclass(frozen=True, kw_only=True)
class ServerCapabilities:
    """What the server offers to jobs.

    data_folder: where data sets lie. feedback_model: the judge of a job that names none.
    has_judge_endpoint: whether an OpenAI-compatible endpoint is configured.
    """

    home: Path
    data_folder: Path
    feedback_model: str = EMBEDDED_JUDGE
    has_judge_endpoint: bool = False


@dataclass(frozen=True)
class Admitted:
    """A configuration with every value in force, and the digest of the data set it names."""

    config: pb.TrainingConfig
    dataset_digest: str


def admit(
    config: pb.TrainingConfig, capabilities: ServerCapabilities, *, deadline_s: float = DEADLINE_S
) -> Admitted:
    """Checks a configuration; blocks for the disk, and for the model hub if it must be asked.

    Every row is rendered as the job will, in half of the time: see `counting.tried`. What there is no time
    for, or waits for a base model that is not here yet, the job's first stage tries.

    Raises InvalidArgument naming the field, Unimplemented, or DeadlineExceeded.
    """
    give_up = time.monotonic() + deadline_s
    refuse_unknown_fields("config", config)
    check_specialization(config.specialization, _WITHIN)
    base = find_base_model(config.base_model, capabilities, _WITHIN)
    complete = with_defaults(
        config, context_length=base.context_length, feedback_model=capabilities.feedback_model
    )
    violations = unfit(complete, context_length=base.context_length)
    violations += _unfit_here(complete, base, capabilities)
    if violations:
        raise InvalidArgument.of(violations)
    if complete.enable_rlaif and complete.algorithm not in ALGORITHMS:
        asked, offered = algorithm_name(complete.algorithm), ", ".join(map(algorithm_name, ALGORITHMS))
        raise Unimplemented(f"config.algorithm: {asked} is not offered by this server, only {offered}")
    inspection = inspect_dataset(complete.dataset_path, complete.specialization, capabilities, _WITHIN)
    try:
        dataset.require(inspection)
    except DatasetError as error:
        raise InvalidArgument(f"{_WITHIN}{error.field}", error.reason) from error
    if complete.enable_rlaif and inspection.questions < 2:
        raise InvalidArgument(
            f"{_WITHIN}enable_rlaif",
            f"RLAIF needs 2 questions with answers, and {complete.dataset_path} has {inspection.questions}: "
            "add rows that ask, or set enable_rlaif to false",
        )
    trial = _tried(base, inspection, complete, capabilities, give_up)
    if trial.faults:
        raise InvalidArgument.of((_WITHIN + fault.field, fault.message) for fault in trial.faults)
    _require_warmup(complete, trial)
    return Admitted(complete, inspection.digest)


@dataclass(frozen=True)
class Validation:
    """What a data set holds. count: of tokens; all 0 where no base model was named."""

    inspection: dataset.Inspection
    count: TokenCount


def validate(
    dataset_path: str,
    capabilities: ServerCapabilities,
    *,
    specialization: str = "",
    base_model: str = "",
    max_seq_length: int = 0,
    deadline_s: float = DEADLINE_S,
) -> Validation:
    """What a job would read; blocks for the disk. max_seq_length: 0 for a job's default.

    Raises InvalidArgument, DeadlineExceeded, or FailedPrecondition while the base model's tokenizer is not
    on this server.
    """
    give_up = time.monotonic() + deadline_s
    if specialization:
        check_specialization(specialization)
    inspection = inspect_dataset(dataset_path, specialization, capabilities)
    if not (base_model and inspection.usable):
        return Validation(inspection, TokenCount())
    base = find_base_model(base_model, capabilities)
    folder = _tokenizer_folder(base, capabilities)
    if folder is None:
        raise FailedPrecondition(
            "BASE_MODEL_NOT_PREPARED",
            f"the tokenizer of {base.name} is not on this server yet; leave base_model empty for a check "
            "without token counts, or start a job with it first",
        )
    asked = pb.TrainingConfig(max_seq_length=max_seq_length or None)
    limit = with_defaults(asked, context_length=base.context_length).max_seq_length
    request = counting.Request(
        model_folder=folder,
        dataset_path=inspection.path,
        dataset_digest=inspection.digest,
        specialization=specialization,
        deadline_s=max(give_up - time.monotonic(), 0.0),
    )
    count, faults = counting.count(
        request, max_seq_length=limit, base_model=base.name, vocab_size=base.vocab_size
    )
    findings = [Finding(0, "base_model", Severity.ERROR, fault) for fault in faults]
    findings += [
        Finding(line, "", Severity.ERROR, f"{base.name} cannot be trained on it: {reason}")
        for line, reason in count.refusals
    ]
    if count.unanswered:
        reason = f"{count.unanswered} rows have no answer within {limit} tokens; a job leaves them out"
        findings.append(Finding(0, "", Severity.WARNING, reason))
    inspection = replace(
        inspection,
        usable=inspection.usable - count.refused,
        errors=inspection.errors + count.refused + len(faults),
        findings=(*findings, *inspection.findings),
    )
    return Validation(inspection, count)


def algorithm_name(algorithm: int) -> str:
    """Such as `ppo`."""
    return pb.Algorithm.Name(pb.Algorithm.ValueType(algorithm)).removeprefix("ALGORITHM_").lower()


def refuse_unknown_fields(field: str, message: Message) -> None:
    """Raises InvalidArgument for a field that this server does not know: ignoring it would ruin a run."""
    fields = UnknownFieldSet(message)
    numbers = sorted({fields[index].field_number for index in range(len(fields))})
    if numbers:
        shown = ", ".join(map(str, numbers))
        raise InvalidArgument(field, f"has fields unknown to this server (numbers {shown}); leave them out")


def check_specialization(name: str, within: str = "") -> None:
    """Raises InvalidArgument for one that does not exist. within: what precedes the field's name."""
    names = sorted(load_specializations())
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InvalidArgument(f"{within}specialization", f"{name!r} is not one of {', '.join(names)}{hint}")


def find_base_model(name: str, capabilities: ServerCapabilities, within: str = "") -> BaseModel:
    """Raises InvalidArgument. within: what precedes the field's name."""
    try:
        return resolve(name, home=capabilities.home)
    except UnknownBaseModel as error:
        raise InvalidArgument(f"{within}base_model", error.reason) from error


def inspect_dataset(
    path: str, specialization: str, capabilities: ServerCapabilities, within: str = ""
) -> dataset.Inspection:
    """What the data set holds; faults of its lines are findings.

    Raises InvalidArgument if the file cannot be read at all. within: what precedes the field's name.
    """
    try:
        located = locate(path, capabilities.data_folder)
        return dataset.inspect(located, system_prompts=system_prompts(), specialization=specialization)
    except DatasetError as error:
        raise InvalidArgument(f"{within}{error.field}", error.reason) from error


def _tokenizer_folder(base: BaseModel, capabilities: ServerCapabilities, within: str = "") -> Path | None:
    try:
        return tokenizer_folder(base, capabilities.home)
    except BaseModelUnavailable as error:
        raise InvalidArgument(f"{within}base_model", str(error)) from error


def _tried(
    base: BaseModel,
    inspection: dataset.Inspection,
    config: pb.TrainingConfig,
    capabilities: ServerCapabilities,
    give_up: float,
) -> Trial:
    request = counting.Request(
        model_folder=_tokenizer_folder(base, capabilities, _WITHIN),
        dataset_path=inspection.path,
        dataset_digest=inspection.digest,
        specialization=config.specialization,
        within=_WITHIN,
        deadline_s=max(give_up - time.monotonic(), 0.0),
    )
    plan = Plan.of(config, context_length=base.context_length, vocab_size=base.vocab_size)
    return counting.tried(request, plan)


def _require_warmup(config: pb.TrainingConfig, trial: Trial) -> None:
    """Raises InvalidArgument if learning_rate would never be reached."""
    if not trial.train_rows:
        return
    steps = fine_tuning_steps(config, trial.sequences)
    if config.warmup_steps >= steps:
        reason = (
            f"{config.warmup_steps} reaches beyond the whole fine-tuning, {steps} steps over "
            f"{trial.train_rows} rows to learn from, so learning_rate is never reached: lower it, or raise "
            "epochs"
        )
        raise InvalidArgument(f"{_WITHIN}warmup_steps", reason)


def _unfit_here(
    config: pb.TrainingConfig, base: BaseModel, capabilities: ServerCapabilities
) -> list[tuple[str, str]]:
    violations = []
    if not base.has_chat_template:
        violations.append(
            ("config.base_model", f"{base.name} has no chat template; use an instruction-tuned model")
        )
    known = layers.layers_of(base) if config.target_modules else ()
    if known and (unknown := layers.unknown(config.target_modules, known)):
        reason = f"no layer of {base.name} is named {', '.join(unknown)}; it has"
        violations.append(("config.target_modules", f"{reason} {', '.join(layers.repeated(known))}"))
    if config.mixed_precision == pb.MIXED_PRECISION_FP16 and not CUDA_DEVICE.exists():
        violations.append(("config.mixed_precision", "fp16 needs a GPU, and this machine has none; use bf16"))
    if config.feedback_model not in JUDGES and not capabilities.has_judge_endpoint:
        reason = f"{config.feedback_model!r} needs OPENAI_API_KEY or OPENAI_BASE_URL at the trainer"
        violations.append(("config.feedback_model", reason))
    return violations
