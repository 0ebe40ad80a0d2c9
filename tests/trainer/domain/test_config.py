from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from neuroweaver.cli.train.config import HELP
from neuroweaver.trainer.domain.config import DEFAULTS, fine_tuning_steps, unfit, with_defaults
from neuroweaver.trainer.settings import EMBEDDED_JUDGE
from neuroweaver.v1 import trainer_pb2 as pb


def test_unset_fields_take_the_documented_defaults_and_set_ones_stay() -> None:
    config = with_defaults(pb.TrainingConfig(lora_r=4, learning_rate=0.5), context_length=0)

    assert config.lora_r == 4
    assert config.learning_rate == 0.5
    assert config.lora_alpha == DEFAULTS.lora_alpha
    assert config.enable_rlaif is True
    assert config.algorithm == pb.ALGORITHM_PPO


def test_a_zero_that_the_caller_gave_is_not_a_missing_value() -> None:
    config = with_defaults(
        pb.TrainingConfig(lora_dropout=0.0, enable_rlaif=False, target_kl=0.0), context_length=0
    )

    assert (config.lora_dropout, config.enable_rlaif, config.target_kl) == (0.0, False, 0.0)


def test_the_default_sequence_length_fits_the_base_model() -> None:
    assert with_defaults(pb.TrainingConfig(), context_length=512).max_seq_length == 512
    assert with_defaults(pb.TrainingConfig(), context_length=8192).max_seq_length == 2048


def test_a_sequence_beyond_the_context_is_named() -> None:
    config = with_defaults(pb.TrainingConfig(max_seq_length=4096, max_new_tokens=4096), context_length=2048)

    assert [field for field, _ in unfit(config, context_length=2048)] == [
        "config.max_seq_length",
        "config.max_new_tokens",
    ]


def test_a_server_has_its_own_default_judge() -> None:
    assert DEFAULTS.feedback_model == EMBEDDED_JUDGE
    assert with_defaults(pb.TrainingConfig()).feedback_model == "embedded"
    assert with_defaults(pb.TrainingConfig(), feedback_model="gpt-x").feedback_model == "gpt-x"
    own = pb.TrainingConfig(feedback_model="embedded")
    assert with_defaults(own, feedback_model="gpt-x").feedback_model == "embedded"


def test_filling_in_changes_neither_the_defaults_nor_what_was_given() -> None:
    before = DEFAULTS.SerializeToString()
    given = pb.TrainingConfig(seed=7, target_modules=["q_proj"])

    assert list(with_defaults(given).target_modules) == ["q_proj"]
    assert with_defaults(given).seed == 7
    assert given == pb.TrainingConfig(seed=7, target_modules=["q_proj"])
    assert DEFAULTS.SerializeToString() == before


FIELDS = pb.TrainingConfig.DESCRIPTOR.fields_by_name
# What they mean when they are left out depends on the job, or they cannot be left out.
WITHOUT_A_DEFAULT = {
    "model_name",
    "base_model",
    "specialization",
    "dataset_path",
    "output_dir",
    "target_modules",
}
WITH_A_DEFAULT = sorted(set(FIELDS) - WITHOUT_A_DEFAULT)


def shown(comment: str, field: FieldDescriptor) -> object:
    """The default that a comment or a help text names, as the field's value."""
    match = re.search(r"\bDefault:? `?([\w.+-]*\w)", comment)
    assert match, f"{field.name}: no default in {comment!r}"
    text = match[1]
    if field.enum_type is not None:
        prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", field.enum_type.name).upper()
        return field.enum_type.values_by_name[f"{prefix}_{text.upper().removeprefix(f'{prefix}_')}"].number
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"true": True, "on": True, "false": False, "off": False}[text]
    return text if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else float(text)


def comments(message: str) -> dict[str, str]:
    """The comment of each field of a message of the contract."""
    proto = Path(__file__).parents[3] / "protos" / "neuroweaver" / "v1" / "trainer.proto"
    body = proto.read_text(encoding="utf-8").split(f"\nmessage {message} {{\n")[1].split("\n}\n")[0]
    fields = re.findall(r"((?:  // .*\n)+)  (?:optional |repeated )?\w+ (\w+) = \d+", body)
    return {name: " ".join(re.findall(r"// (.*)", comment)) for comment, name in fields}


@pytest.mark.parametrize("name", WITH_A_DEFAULT)
def test_the_contract_names_the_default_in_force(name: str) -> None:
    assert shown(comments("TrainingConfig")[name], FIELDS[name]) == getattr(DEFAULTS, name)


@pytest.mark.parametrize("name", WITH_A_DEFAULT)
def test_the_help_text_names_the_default_in_force(name: str) -> None:
    assert shown(HELP[name], FIELDS[name]) == getattr(DEFAULTS, name)


def test_other_requests_name_the_same_defaults() -> None:
    validated, evaluated = comments("ValidateDatasetRequest"), comments("EvaluateModelRequest")
    assert shown(validated["max_seq_length"], FIELDS["max_seq_length"]) == DEFAULTS.max_seq_length
    assert shown(evaluated["max_new_tokens"], FIELDS["max_new_tokens"]) == DEFAULTS.max_new_tokens


def test_every_field_has_a_default_or_a_reason_to_have_none() -> None:
    assert {field.name for field, _ in DEFAULTS.ListFields()} == set(WITH_A_DEFAULT)


@pytest.mark.parametrize(
    ("rows", "batch_size", "accumulated", "epochs", "steps"),
    [(24, 4, 1, 1.0, 6), (24, 4, 4, 1.0, 2), (25, 8, 4, 3.0, 3), (1, 8, 4, 0.1, 1), (33, 8, 4, 0.5, 1)],
)
def test_the_steps_of_fine_tuning_are_those_of_its_batches(
    rows: int, batch_size: int, accumulated: int, epochs: float, steps: int
) -> None:
    config = pb.TrainingConfig(batch_size=batch_size, gradient_accumulation_steps=accumulated, epochs=epochs)
    assert fine_tuning_steps(config, rows) == steps
