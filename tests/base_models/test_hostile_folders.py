"""Model folders with hostile values at each place: the base model is at fault, never we, and nothing swells."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from base_models.families import CHATML, byte_level
from neuroweaver.base_models import model_folder
from neuroweaver.base_models.catalog import UnknownBaseModel, resolve
from neuroweaver.base_models.folders import BaseModelUnavailable, digests
from neuroweaver.base_models.model_folder import Unusable
from neuroweaver.trainer.data import __main__ as counting

ROW = {"messages": [{"role": "user", "content": "oil"}, {"role": "assistant", "content": "yes"}]}
TENSOR = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
# As they stand in a file: Python's JSON would not write all of them.
NUMBERS = (
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-1",
    "0",
    "1.5",
    "true",
    "1" + "0" * 400,
    "9223372036854775808",
)
WORDS = ('""', "null", "[]", "{}", '"\\ud800"', '"\\u0000"', '"' + "x" * 5000 + '"', "[" * 200 + "]" * 200)
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
VALUES = st.sampled_from(NUMBERS + WORDS) | NESTED.map(json.dumps)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "model"
    byte_level(CHATML).save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "vocab_size": 332,
                "max_position_embeddings": 512,
            }
        )
    )
    write_weights(folder, json.dumps({"a.weight": TENSOR}))
    (folder / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    return folder


def weights(*, shape: str = "2, 3", end: str = "24") -> str:
    return '{"a.weight": {"dtype": "F32", "shape": [SHAPE], "data_offsets": [0, END]}}'.replace(
        "SHAPE", shape
    ).replace("END", end)


def write_weights(folder: Path, header: str) -> None:
    content = header.encode()
    (folder / "model.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + bytes(24))


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Where a value can be replaced; of long lists and maps, the beginning."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, below in list(inner)[:40] for place in places(below, (*path, name)))]


def replaced(value: object, path: tuple, raw: str) -> str:
    """The value as JSON with `raw` at the path."""
    if not path:
        return raw
    inner = value if isinstance(value, dict) else dict(enumerate(value))
    texts = {
        name: replaced(below, path[1:], raw) if name == path[0] else json.dumps(below)
        for name, below in inner.items()
    }
    if isinstance(value, list):
        return f"[{','.join(texts.values())}]"
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in texts.items()) + "}"


def judged(folder: Path) -> dict[str, object]:
    """What admission and the process that counts say of the folder; anything else that is raised is a fault."""
    try:
        resolve(str(folder), home=folder, allow_network=False)
        model_folder.layers(folder)
        digests(folder)
    except (UnknownBaseModel, Unusable, BaseModelUnavailable) as error:
        return {"fault": str(error), "field": "base_model"}
    return counting.answer(
        {
            "model_folder": str(folder),
            "dataset_path": str(folder / "rows.jsonl"),
            "specialization": "",
            "max_seq_length": 64,
            "vocab_size": 0,
            "base_model": "model",
        }
    )


def require_told(answer: dict[str, object]) -> None:
    """Whatever the answer says can be sent, and it blames nobody else."""
    assert answer.get("field", "base_model") == "base_model"
    assert len(json.dumps(answer, ensure_ascii=False).encode()) < 5000


@given(st.data())
@settings(deadline=None, max_examples=120, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_hostile_value_is_the_base_models_fault_wherever_it_stands(sound, data):
    folder = sound.with_name("hostile")
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    file = data.draw(st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", "weights"]))
    raw = data.draw(VALUES)
    content = {"a.weight": TENSOR} if file == "weights" else json.loads((folder / file).read_bytes())
    hostile = replaced(content, data.draw(st.sampled_from(places(content))), raw)
    if file == "weights":
        write_weights(folder, hostile)
    else:
        (folder / file).write_text(hostile)
    require_told(judged(folder))


@pytest.mark.parametrize(
    "header",
    [
        *(weights(end=number) for number in NUMBERS),
        *(weights(shape=number) for number in NUMBERS if number != "0"),
        weights(shape=",".join(["1"] * 65)),
        '{"a.weight": {"dtype": "F32", "shape": "23", "data_offsets": [0, 24]}}',
        '{"a": {"shape": [6], "data_offsets": [0, 24]}, "a": {"shape": [6], "data_offsets": [0, 24]}}',
        "[" * 100_000,
        "[]",
        "1",
    ],
)  # fmt: skip
def test_a_header_of_weights_that_is_none_is_refused_by_the_files_name(sound, tmp_path, header):
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    if 'shape": [0]' in header:
        pytest.skip("an empty tensor is sound")
    write_weights(folder, header)
    for look in (lambda: resolve(str(folder), home=folder), lambda: model_folder.layers(folder)):
        with pytest.raises((UnknownBaseModel, Unusable), match=r"model\.safetensors is (not a|cut short)"):
            look()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", '{"architectures": ["\\ud800ForCausalLM"]}', "config.json cannot be read"),
        ("config.json", '{"architectures": ["LlamaForCausalLM"], "vocab_size": 1e999}', ""),
        ("config.json", '{"architectures": ["LlamaForCausalLM"], "vocab_size": 9000000000}', "beyond any model"),
        ("model.safetensors.index.json", '{"weight_map": [1]}', "no weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": {"b": 1}}}', "no weight_map"),
        ("model.safetensors.index.json", json.dumps({"weight_map": {"a": "x" * 100_000}}), "lacks 1 of 1"),
        ("chat_template.jinja", b"\xff", "chat template of model cannot be read"),
        ("chat_template.jinja", "{{ '\\ud800' }}", "half of a surrogate pair"),
        ("chat_template.jinja", "{{ raise_exception('no \\ud800 no') }}", "no \ufffd no"),
        ("chat_template.jinja", "{{ raise_exception('x' * 10000000) }}", "xxx"),
        ("chat_template.jinja", "{{ 'x' * 99999999999 }}", "memory"),
        ("chat_template.jinja", "{{ 'x' * 99999999 }}", "writes more than 16777216 characters"),
        ("chat_template.jinja", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("chat_template.jinja", "{{ messages.__class__ }}{% if %}", "Expected an expression"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_told(sound, tmp_path, name, content, told):
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    answer = judged(folder)
    require_told(answer)
    assert told in json.dumps(answer, ensure_ascii=False)


def examined(folder: Path) -> None:
    resolve(str(folder), home=folder, allow_network=False)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("eos_token_id", value)
            for value in (["x", 2], {"a": 1}, 10**30, ["x", None, -1], 1.5, -1, True, "2", [[2]], 332, [2, 332])
        ),
        *((name, value) for name in ("bos_token_id", "pad_token_id") for value in ("x", 1.5, True, [1], -2, 10**30)),
    ],
)  # fmt: skip
def test_what_is_no_token_is_refused_by_its_name_and_file(sound, tmp_path, file, name, value):
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    path = folder / file
    before = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps(before | {name: value}))
    with pytest.raises(UnknownBaseModel, match=rf"{name} \({file}\)"):
        examined(folder)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    "sound_value",
    [
        {"eos_token_id": None},
        {"eos_token_id": [0, 331]},
        {"eos_token_id": []},
        {"eos_token_id": 2, "pad_token_id": -1},
    ],
)
def test_tokens_are_no_fault(sound, tmp_path, file, sound_value):
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    path = folder / file
    before = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps(before | sound_value))
    examined(folder)


def test_ends_of_generation_come_before_those_of_a_configuration_that_was_never_cleaned(sound, tmp_path):
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 50256}))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    examined(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 300_000_000}, "has a num_hidden_layers of more than 10000"),
        ({"text_config": {"n_layer": 10_001}}, "has a n_layer of more than 10000"),
        ({"vision_config": {"depth": 1e9}}, "has a depth of more than 10000"),
        ({"num_local_experts": 10**7}, "has a num_local_experts of more than 10000"),
        ({"num_labels": 10**8}, "has a num_labels of more than 10000"),
        ({"attention_types": [[["global"], 10**9]]}, "has a attention_types of more than 10000"),
        ({"num_hidden_layers": "12"}, 'has a num_hidden_layers of "12", which is no size'),
        ({"hidden_size": 1.5}, "has a hidden_size of 1.5, which is no size"),
        ({"vocab_size": True}, "has a vocab_size of true, which is no size"),
        ({"max_position_embeddings": -1}, "has a max_position_embeddings of -1, which is no size"),
    ],
)
def test_a_size_that_no_model_has_is_refused_by_its_name(sound, tmp_path, changes, told):
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UnknownBaseModel, match=re.escape(told)):
        examined(folder)


def test_a_header_larger_than_any_models_is_refused_before_it_is_read(sound, tmp_path):
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    size = model_folder.MAX_HEADER_BYTES + 1
    with (folder / "model.safetensors").open("wb") as target:
        target.write(size.to_bytes(8, "little"))
        target.truncate(8 + size)
    with pytest.raises(UnknownBaseModel, match=f"model.safetensors has a header of {size} bytes, more than"):
        examined(folder)


def test_a_tokenizer_without_the_word_that_it_has_for_the_unknown_is_at_fault(sound, tmp_path):
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    path = folder / "tokenizer.json"
    model = {"type": "WordLevel", "vocab": {"a": 0, "<|im_end|>": 1}, "unk_token": "[UNK]"}
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"model": model, "added_tokens": []}))
    answer = judged(folder)
    require_told(answer)
    assert "Missing [UNK] token" in json.dumps(answer)
