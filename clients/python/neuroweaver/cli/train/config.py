"""A TrainingConfig from a file and from options, both made from the message itself: neither lacks a field."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from typer import Option

from buf.validate import validate_pb2
from neuroweaver.cli.arguments.spec_file import field_of
from neuroweaver.cli.terminal.failures import BadInput
from neuroweaver.client.text import enum_choices, enum_prefix
from neuroweaver.v1 import trainer_pb2 as trainer

FIELDS: Final[Mapping[str, FieldDescriptor]] = trainer.TrainingConfig.DESCRIPTOR.fields_by_name

HELP: Final[Mapping[str, str]] = {
    "model_name": "The model that the result becomes a version of.",
    "base_model": "The model to start from: a built-in name, a folder or a Hugging Face id.",
    "specialization": "A specialisation's id; `neuroweaver train templates` lists them.",
    "dataset_path": "JSONL or CSV below the server's data folder, or builtin:automotive.",
    "output_dir": "Where the job's files go, below the server's jobs folder. Default: the job id.",
    "lora_r": "Rank of the LoRA matrices. Default 16.",
    "lora_alpha": "LoRA scale is alpha / r. Default 32.",
    "lora_dropout": "Dropout on the LoRA input. Default 0.05.",
    "target_modules": "A linear layer that gets an adapter; repeat for several. Default: all but the head.",
    "epochs": "Passes over the training data. Default 3.",
    "learning_rate": "Peak learning rate of fine-tuning. Default 2e-4.",
    "batch_size": "Sequences in one forward pass. Default 8.",
    "gradient_accumulation_steps": "Forward passes in one optimizer step. Default 4.",
    "max_seq_length": "Tokens of the longest training sequence. Default 2048, or the base model's context.",
    "warmup_steps": "Steps over which the learning rate rises. Default 0.",
    "weight_decay": "AdamW's weight decay. Default 0.",
    "quantization": "How the base model's weights are held; nf4 is QLoRA. Default none.",
    "mixed_precision": "The arithmetic of the passes. Default bf16.",
    "gradient_checkpointing": "Less memory, more time. Default off.",
    "seed": "Seed of every random choice. Default 42.",
    "validation_fraction": "Share of the data held out for perplexity. Default 0.1.",
    "enable_rlaif": "Reinforcement learning from AI feedback after fine-tuning. Default on.",
    "feedback_model": "The judge: a model at the server's endpoint. Default embedded, or the server's own.",
    "rlaif_threshold": "Judged score from which a response counts as good. Default 7.",
    "rlaif_samples": "Prompts for which responses are sampled and judged. Default 64.",
    "responses_per_prompt": "Responses for each of these prompts. Default 4.",
    "algorithm": "The algorithm of the reinforcement learning. Default ppo.",
    "kl_coeff": "Weight of the KL penalty. Default 0.05.",
    "target_kl": "KL that the controller aims at, in nats per response; 0 keeps kl_coeff. Default 6.",
    "ppo_steps": "Rollouts with their updates. Default 50.",
    "ppo_batch_size": "Responses in one rollout. Default 16.",
    "ppo_learning_rate": "Learning rate of PPO. Default 1e-4.",
    "ppo_epochs": "Passes over the responses of one PPO step. Default 2.",
    "reward_model_epochs": "Passes over the preference pairs. Default 2.",
    "max_new_tokens": "Longest sampled response, in tokens. Default 128.",
    "fall_back_to_sft": "Register the fine-tuned model if RLAIF fails. Default off.",
}

_ALIASES: Final = {"dataset_path": ("--dataset", "--dataset-path")}

_TYPES: Final[Mapping[int, type]] = {
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_DOUBLE: float,
    FieldDescriptor.CPPTYPE_FLOAT: float,
    FieldDescriptor.CPPTYPE_INT32: int,
    FieldDescriptor.CPPTYPE_INT64: int,
}
"""Of options, by the field's C++ type; all others are text."""
_EXPECTED: Final[Mapping[Any, str]] = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "a text",
    list[str]: "a list of texts",
}


def options_of(**options: Any) -> dict[str, Any]:
    """The options that were given: one for each field of TrainingConfig."""
    # An option that may be repeated is an empty list when it was not given.
    return {name: value for name, value in options.items() if value not in (None, [])}


def to_config(fields: Mapping[str, Any]) -> trainer.TrainingConfig:
    """Raises BadInput naming the first field that is unknown or of a wrong type."""
    config = trainer.TrainingConfig()
    for given, value in fields.items():
        field = field_of(trainer.TrainingConfig.DESCRIPTOR, given, given)
        if value is None:
            continue
        try:
            json_format.ParseDict({field.name: _json_value(field, value)}, config)
        except json_format.ParseError as error:
            raise BadInput(f"{_shown(value)} is not {_expected(field)}", field.name) from error
    return config


def _json_value(field: FieldDescriptor, value: Any) -> Any:
    """Enums by their short names (nf4), and none of protobuf JSON's silent conversions of booleans."""
    if isinstance(value, bool) and field.cpp_type != FieldDescriptor.CPPTYPE_BOOL:
        raise json_format.ParseError("a boolean")
    if field.enum_type and isinstance(value, str):
        prefix = enum_prefix(field.enum_type)
        return f"{prefix}{value.upper().removeprefix(prefix)}"
    return value


def _parameter(field: FieldDescriptor) -> inspect.Parameter:
    option = Option(
        *_flags(field),
        help=HELP[field.name],
        show_default=False,
        rich_help_panel=_panel(field),
        metavar=_metavar(field),
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[_python_type(field) | None, option],
    )


def _flags(field: FieldDescriptor) -> tuple[str, ...]:
    flag = f"--{field.name.replace('_', '-')}"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return (f"{flag}/--no-{flag.removeprefix('--')}",)
    return _ALIASES.get(field.name, (flag,))


def _python_type(field: FieldDescriptor) -> Any:
    return list[str] if field.is_repeated else _TYPES.get(field.cpp_type, str)


def _metavar(field: FieldDescriptor) -> str | None:
    if field.enum_type:
        return "|".join(enum_choices(field.enum_type))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return None
    return _range(field) or ("TEXT" if _python_type(field) in (str, list[str]) else "NUMBER")


def _panel(field: FieldDescriptor) -> str:
    if field.number < 10:
        return "What to train"
    return "Fine-tuning" if field.number < 40 else "Reinforcement learning from AI feedback"


def _expected(field: FieldDescriptor) -> str:
    if field.enum_type:
        return f"one of {', '.join(enum_choices(field.enum_type))}"
    return f"{_EXPECTED[_python_type(field)]} {_range(field)}".strip()


def _range(field: FieldDescriptor) -> str:
    """The field's rule in the .proto file, such as `1..512` or `>0..1`."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    kind = rules.WhichOneof("type")
    if kind not in {"int32", "int64", "double"}:
        return ""
    rule = getattr(rules, kind)
    lower = f"{rule.gte:g}" if rule.HasField("gte") else f">{rule.gt:g}"
    upper = f"{rule.lte:.10g}" if rule.HasField("lte") else f"<{rule.lt:g}"
    return f"{lower}..{upper}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"


options_of.__signature__ = inspect.Signature([*map(_parameter, FIELDS.values())])  # type: ignore[attr-defined]
