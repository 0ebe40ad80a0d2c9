from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from neuroweaver.artifacts.file import File
from neuroweaver.base_models.folders import Digests, digests
from neuroweaver.serving import artifacts
from neuroweaver.serving.artifacts import DamagedArtifacts, verified


def file(path, content=b"abc"):
    return File(path, hashlib.sha256(content).hexdigest(), len(content))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "a.json").write_bytes(b"abc")
    (tmp_path / "adapter" / "unlisted.bin").write_bytes(b"evil")
    return tmp_path


def test_what_was_verified_is_seen_and_nothing_else(folder):
    with verified(folder, [file("adapter/a.json")]) as view:
        assert [path.name for path in (view / "adapter").iterdir()] == ["a.json"]
        assert (view / "adapter" / "a.json").read_bytes() == b"abc"
    assert not view.exists()
    assert (folder / "adapter" / "a.json").exists()


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (file("adapter/none.json"), "adapter/none.json cannot be read"),
        (file("adapter/a.json", b"abcd"), "has 3 bytes, not 4"),
        (file("adapter/a.json", b"abd"), "has SHA-256"),
        (file("adapter"), "bytes|cannot be read"),
    ],
)
def test_a_file_that_differs_is_named(folder, wanted, told):
    with pytest.raises(DamagedArtifacts, match=told), verified(folder, [file("adapter/a.json"), wanted]):
        pytest.fail("was let through")


def test_an_adapter_is_found_by_its_configuration():
    files = [file("training/config.json"), file("adapter/adapter_config.json")]
    with pytest.raises(DamagedArtifacts, match=r"adapter_model\.safetensors"):
        artifacts.adapter_folder(files)
    assert str(artifacts.adapter_folder([*files, file("adapter/adapter_model.safetensors")])) == "adapter"
    assert artifacts.adapter_folder([file("config.json")]) is None


def test_two_adapters_are_one_too_many():
    files = [file(f"{name}/adapter_config.json") for name in ("a", "b")]
    with pytest.raises(DamagedArtifacts, match="2 adapters"):
        artifacts.adapter_folder(files)


def test_a_whole_model_is_found_by_its_weights():
    files = [file("training/config.json"), file("model/config.json"), file("model/model-1.safetensors")]
    assert str(artifacts.model_folder(files)) == "model"
    assert str(artifacts.model_folder([file("config.json"), file("model.safetensors")])) == "."
    with pytest.raises(DamagedArtifacts, match="not 0"):
        artifacts.model_folder([file("config.json"), file("pytorch_model.bin")])


@pytest.mark.parametrize(
    ("part", "named"),
    [("base", "the base model"), ("tokenizer", "the tokenizer"), ("chat_template", "the chat template")],
)
def test_a_base_is_checked_by_its_digests(base, part, named):
    actual = digests(base)
    artifacts.verify_base(base, actual)
    artifacts.verify_base(base, Digests("", "", ""))
    with pytest.raises(DamagedArtifacts, match=f"{named} has digest {getattr(actual, part)}, not 0"):
        artifacts.verify_base(base, replace(actual, **{part: "0" * 64}))
    with pytest.raises(DamagedArtifacts, match="holds no"):
        artifacts.verify_base(base / "none", Digests("", "", ""))


@pytest.mark.parametrize("value", [-1, 1.5, True, "2", ["x", 2], {"a": 1}, 10**30, 332])
def test_what_is_no_token_ends_no_answer(tmp_path, value):
    (tmp_path / "config.json").write_text('{"vocab_size": 332}')
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    for look in (lambda: artifacts.ends(tmp_path, 332), lambda: artifacts.verify_ends(tmp_path)):
        with pytest.raises(DamagedArtifacts, match=r"as its eos_token_id \(generation_config\.json\)"):
            look()


def test_tokens_end_answers(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 331]}')
    assert artifacts.ends(tmp_path, 332) == {2, 331}
