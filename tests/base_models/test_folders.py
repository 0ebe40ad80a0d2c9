from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from neuroweaver.artifacts.content import digest_of
from neuroweaver.base_models import folders
from neuroweaver.base_models.folders import (
    BaseModelUnavailable,
    HubUnreachable,
    base_digest,
    digests,
    materialize,
    never_stop,
    tokenizer_folder,
)
from trainer.tiny import tiny_llama


class Stopped(Exception):
    pass


class StopsAt:
    """A check that raises at its n-th call."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stopped


def base(kind: str, location: Path | str = "") -> SimpleNamespace:
    return SimpleNamespace(kind=kind, location=location, name="tiny", revision=None)


@pytest.fixture
def folder(tmp_path):
    return tiny_llama(tmp_path / "tiny", hidden_size=64)


@pytest.fixture
def converted(monkeypatch, tmp_path):
    """Conversions of the built-in model, made cheap: the tiny model stands in for the GGUF file."""
    calls: list[Path] = []

    def convert(source, folder, check):
        calls.append(folder)
        tiny_llama(folder)

    monkeypatch.setattr(folders, "_convert_gguf", convert)
    return calls


def test_a_local_folder_is_used_where_it_lies(folder, tmp_path):
    assert materialize(base("local", folder), tmp_path / "home") == folder


def test_a_folder_without_safetensors_is_refused(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelUnavailable, match="safetensors"):
        materialize(base("local", folder), tmp_path)


def test_the_built_in_model_is_converted_once(converted, tmp_path):
    first = materialize(base("builtin"), tmp_path)
    assert materialize(base("builtin"), tmp_path) == first
    assert len(converted) == 1
    assert (first / "model.safetensors").is_file()
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        ".smollm2-135m-instruct.lock",
        "smollm2-135m-instruct",
    ]


def test_conversions_at_the_same_time_give_one(converted, tmp_path):
    threads = [threading.Thread(target=materialize, args=(base("builtin"), tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(converted) == 1


def test_a_conversion_cut_short_leaves_no_model_and_is_cleaned_up_by_the_next(
    converted, tmp_path, monkeypatch
):
    models = tmp_path / "models"
    (models / ".smollm2-135m-instruct.partial-dead").mkdir(parents=True)
    materialize(base("builtin"), tmp_path)
    assert not list(models.glob(".*partial*"))

    def fail(source, folder, check):
        (folder / "config.json").write_text("{}")
        raise Stopped

    monkeypatch.setattr(folders, "_convert_gguf", fail)
    with pytest.raises(Stopped):
        materialize(base("builtin"), tmp_path / "other")
    assert [path.name for path in (tmp_path / "other" / "models").iterdir()] == [
        ".smollm2-135m-instruct.lock"
    ]


def test_a_job_may_be_stopped_while_another_converts(converted, tmp_path):
    (tmp_path / "models").mkdir()
    with (
        folders._lock(tmp_path / "models" / ".smollm2-135m-instruct.lock", never_stop),
        pytest.raises(Stopped),
    ):
        materialize(base("builtin"), tmp_path, StopsAt(2))
    assert converted == []


def test_from_the_hub_come_safetensors_and_no_code_or_pickles(folder, monkeypatch, tmp_path):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(folders.huggingface_hub, "snapshot_download", download)
    spec = SimpleNamespace(kind="hub", location="some/model", name="some/model", revision="abc")
    assert materialize(spec, tmp_path) == folder
    assert (asked["name"], asked["revision"]) == ("some/model", "abc")
    wanted = set(asked["allow_patterns"])
    assert "*.safetensors" in wanted
    assert not wanted & {"*", "*.py", "*.bin", "*.pt"}
    # `tokenizer*` would take these along.
    assert {"*.py", "*.bin", "*.pkl", "*.pt"} <= set(asked["ignore_patterns"])


def test_a_tokenizer_comes_from_the_hub_without_weights_and_of_the_shipped_model_once_it_is_converted(
    folder, monkeypatch, tmp_path
):
    asked = {}

    def download(name, **options):
        asked.update(options)
        return str(folder)

    monkeypatch.setattr(folders.huggingface_hub, "snapshot_download", download)
    spec = SimpleNamespace(kind="hub", location="some/model", name="some/model", revision="abc")
    assert tokenizer_folder(spec, tmp_path) == folder
    assert {"*.safetensors", "*.py", "*.bin"} <= set(asked["ignore_patterns"])
    assert tokenizer_folder(SimpleNamespace(kind="local", location=folder), tmp_path) == folder
    assert tokenizer_folder(base("builtin"), tmp_path) is None
    (tmp_path / "models" / folders.BUILTIN_FOLDER).mkdir(parents=True)
    assert tokenizer_folder(base("builtin"), tmp_path) == tmp_path / "models" / folders.BUILTIN_FOLDER


def test_an_unreachable_hub_is_told_as_an_unavailable_model(monkeypatch, tmp_path):
    def download(name, **options):
        raise OSError("no route")

    monkeypatch.setattr(folders.huggingface_hub, "snapshot_download", download)
    with pytest.raises(HubUnreachable, match="hub"):
        materialize(SimpleNamespace(kind="hub", location="a/b", name="a/b", revision=None), tmp_path)


def test_the_digest_of_a_base_model_can_be_told_by_those_of_its_files(folder):
    (folder / "a.safetensors").write_bytes(b"first by name")
    weights = {path.name: digest_of(path) for path in sorted(folder.glob("*.safetensors"), reverse=True)}
    assert len(weights) == 2
    assert base_digest(digest_of(folder / "config.json"), weights) == digests(folder).base


def test_digests_tell_weights_tokenizer_and_template_apart(folder):
    first = digests(folder)
    assert digests(folder) == first
    assert len({first.base, first.tokenizer, first.chat_template}) == 3
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    other_template = digests(folder)
    assert other_template.chat_template != first.chat_template
    assert (other_template.base, other_template.tokenizer) == (first.base, first.tokenizer)
    with (folder / "model.safetensors").open("ab") as weights:
        weights.write(b"\0")
    assert digests(folder).base != first.base
    assert digests(folder).tokenizer == first.tokenizer


def test_of_several_templates_the_default_is_the_one_of_the_digest(folder):
    one = digests(folder).chat_template
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": text}]
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
    assert digests(folder).chat_template == one


def test_the_command_tells_folder_and_digest_without_torch_for_a_model_that_is_there(tmp_path):
    folder = tiny_llama(tmp_path / "models" / "tiny")
    program = (
        "import sys; sys.argv[1:] = ['tiny', '--home', sys.argv[1], '--offline']\n"
        "from neuroweaver.base_models.__main__ import main\n"
        "code = main(); assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(folders.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"folder": str(folder), "digest": digests(folder).base}
