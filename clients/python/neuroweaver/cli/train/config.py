"""A TrainingConfig from a file and from options, both made from the message itself: neither lacks a field."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from buf.validate import validate_pb2
from neuroweaver.cli.terminal.failures import BadInput
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

_FLOATS: Final = frozenset({FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT})
_INTEGERS: Final = frozenset({FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64})


def with_config_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option for each field of TrainingConfig; those given arrive as `options`, a dict."""
    own = [
        parameter
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
        if name != "options"
    ]
    parameters = [*own, *map(_parameter, FIELDS.values())]

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        # An option that may be repeated is an empty list when it was not given.
        options = {name: value for name in FIELDS if (value := arguments.pop(name)) not in (None, [])}
        command(options=options, **arguments)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def read_config(path: Path) -> dict[str, Any]:
    """The fields in a YAML or JSON file. Raises BadInput."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}", "--config") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 (byte {error.start})", "--config") from error
    try:
        fields = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}:{error.lineno}: {error.msg}", "--config") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{path}:{line}: {error.problem}", "--config") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise BadInput(f"{path}: not a YAML file", "--config") from error
    if not isinstance(fields, dict):
        raise BadInput(f"{path}: holds no fields of a TrainingConfig (`name: value` lines)", "--config")
    return {str(name): value for name, value in fields.items()}


def to_config(fields: Mapping[str, Any]) -> trainer.TrainingConfig:
    """Raises BadInput naming the first field that is unknown or of a wrong type."""
    config = trainer.TrainingConfig()
    for given, value in fields.items():
        field = _field(given)
        if value is None:
            continue
        try:
            json_format.ParseDict({field.name: _json_value(field, value)}, config)
        except json_format.ParseError as error:
            raise BadInput(f"{_shown(value)} is not {_expected(field)}", field.name) from error
    return config


def _field(name: str) -> FieldDescriptor:
    known = FIELDS.get(name) or trainer.TrainingConfig.DESCRIPTOR.fields_by_camelcase_name.get(name)
    if known:
        return known
    near = difflib.get_close_matches(name, FIELDS, n=1)
    raise BadInput(f"no such field{f'; did you mean {near[0]}?' if near else ''}", name)


def _json_value(field: FieldDescriptor, value: Any) -> Any:
    """Enums by their short names (nf4), and none of protobuf JSON's silent conversions of booleans."""
    if isinstance(value, bool) and field.cpp_type != FieldDescriptor.CPPTYPE_BOOL:
        raise json_format.ParseError("a boolean")
    if field.enum_type and isinstance(value, str):
        return f"{_prefix(field.enum_type)}{value.upper().removeprefix(_prefix(field.enum_type))}"
    return value


def _parameter(field: FieldDescriptor) -> inspect.Parameter:
    option = typer.Option(
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
    if field.is_repeated:
        return list[str]
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return bool
    if field.cpp_type in _FLOATS:
        return float
    return int if field.cpp_type in _INTEGERS else str


def _metavar(field: FieldDescriptor) -> str | None:
    if field.enum_type:
        return "|".join(choices(field.enum_type))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return None
    return _range(field) or ("TEXT" if _python_type(field) in (str, list[str]) else "NUMBER")


def _panel(field: FieldDescriptor) -> str:
    if field.number < 10:
        return "What to train"
    return "Fine-tuning" if field.number < 40 else "Reinforcement learning from AI feedback"


def choices(enum: EnumDescriptor) -> list[str]:
    """The short names of an enum's values: nf4 for QUANTIZATION_NF4."""
    return [value.name.removeprefix(_prefix(enum)).lower() for value in enum.values if value.number]


def _prefix(enum: EnumDescriptor) -> str:
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")


def _expected(field: FieldDescriptor) -> str:
    if field.enum_type:
        return f"one of {', '.join(choices(field.enum_type))}"
    if field.is_repeated:
        return "a list of texts"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "true or false"
    if field.cpp_type in _FLOATS:
        return f"a number {_range(field)}".strip()
    return f"a whole number {_range(field)}".strip() if field.cpp_type in _INTEGERS else "a text"


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
