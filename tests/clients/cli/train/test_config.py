from __future__ import annotations

import pytest

from neuroweaver.cli.arguments.spec_file import read_fields
from neuroweaver.cli.terminal.failures import BadInput
from neuroweaver.cli.train.config import FIELDS, HELP, to_config
from neuroweaver.v1 import trainer_pb2


def test_every_field_of_the_config_is_an_option_with_help():
    assert set(HELP) == set(FIELDS)


def test_a_yaml_file_gives_a_config(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "model_name: advisor\nlearning_rate: 2e-4\nquantization: nf4\ntarget_modules: [q_proj]\nenable_rlaif: false\n"
    )

    config = to_config(read_fields(path))

    assert config.model_name == "advisor"
    assert config.learning_rate == 2e-4
    assert config.quantization == trainer_pb2.QUANTIZATION_NF4
    assert list(config.target_modules) == ["q_proj"]
    assert config.HasField("enable_rlaif")
    assert not config.enable_rlaif


def test_a_json_file_may_hold_what_train_show_prints(tmp_path):
    path = tmp_path / "job.json"
    path.write_text(
        '{"modelName": "advisor", "quantization": "QUANTIZATION_INT8", "seed": "7", "epochs": null}'
    )

    config = to_config(read_fields(path))

    assert (config.model_name, config.quantization, config.seed) == (
        "advisor",
        trainer_pb2.QUANTIZATION_INT8,
        7,
    )
    assert not config.HasField("epochs")


@pytest.mark.parametrize(
    ("fields", "named", "told"),
    [
        ({"learnig_rate": 1}, "learnig_rate", "did you mean learning_rate?"),
        ({"zzz": 1}, "zzz", "no such field"),
        ({"lora_r": "many"}, "lora_r", '"many" is not a whole number 1..512'),
        ({"lora_r": 1.5}, "lora_r", "1.5 is not a whole number"),
        ({"lora_r": True}, "lora_r", "true is not a whole number"),
        ({"epochs": True}, "epochs", "true is not a number"),
        ({"epochs": float("nan")}, "epochs", "NaN is not a number"),
        ({"epochs": {"a": 1}}, "epochs", "is not a number"),
        ({"quantization": "nf5"}, "quantization", "is not one of none, nf4, int8"),
        ({"algorithm": "dqn"}, "algorithm", "is not one of ppo, grpo, rloo, dpo, online_dpo"),
        ({"enable_rlaif": "yes"}, "enable_rlaif", "is not true or false"),
        ({"target_modules": "q_proj"}, "target_modules", "is not a list of texts"),
        ({"model_name": 3}, "model_name", "3 is not a text"),
        ({"model_name": "x" * 9999, "lora_r": "y" * 9999}, "lora_r", "…"),
    ],
)
def test_a_wrong_field_is_named(fields, named, told):
    with pytest.raises(BadInput) as refusal:
        to_config(fields)

    [(path, description)] = refusal.value.violations
    assert path == named
    assert told in description
    assert len(description) < 200


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("job.yaml", "a: [1", "job.yaml:1"),
        ("job.yaml", "model_name: a\n\tb: 1", "job.yaml:2"),
        ("job.yaml", "- a\n- b", "holds no fields"),
        ("job.yaml", "", "holds no fields"),
        ("job.json", '{"a": 1,\n}', "job.json:2"),
        ("job.yaml", "a: !!python/object/apply:os.system [id]", "job.yaml:1"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, name, content, told):
    path = tmp_path / name
    path.write_text(content)

    with pytest.raises(BadInput, match=told):
        read_fields(path)


def test_a_missing_file_and_one_that_is_not_utf8_are_named(tmp_path):
    with pytest.raises(BadInput, match="No such file"):
        read_fields(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model_name: \xff")
    with pytest.raises(BadInput, match=r"latin\.yaml: not UTF-8"):
        read_fields(tmp_path / "latin.yaml")
