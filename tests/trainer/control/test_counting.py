from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from base_models.families import CHATML, NAMED, byte_level
from neuroweaver.base_models import tokenizer
from neuroweaver.base_models.tokenizer import load_tokenizer
from neuroweaver.mesh.wire.errors import DeadlineExceeded, InvalidArgument, Unavailable
from neuroweaver.trainer.control.counting import Request, Split, count, small_files, tried
from neuroweaver.trainer.data import __main__ as child
from neuroweaver.trainer.data import dataset
from neuroweaver.trainer.data.tokens import count_tokens

# Generous: a deadline that is met is never waited for.
DEADLINE_S = 120.0
SPLIT = Split(fraction=0.5, seed=1)
ROWS = [
    {"messages": [{"role": role, "content": text} for role, text in turns]}
    for turns in (
        [("user", "check the oil"), ("assistant", "Replace it"), ("user", "and now"), ("assistant", "Yes")],
        [("user", "oil"), ("assistant", "the pads of the engine")],
    )
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def of_a_family(folder: Path) -> None:
    NAMED["Qwen 3"].tokenizer().save_pretrained(folder)


def of_several_templates(folder: Path) -> None:
    byte_level(None).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": CHATML}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))


def of_a_vocabulary_and_merges(folder: Path) -> None:
    whole = byte_level(CHATML)
    whole.save_pretrained(folder)
    whole.backend_tokenizer.model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))


def request(folder: Path, path: Path, limit: int = 32, **fields: object) -> Request:
    fields = {"specialization": "service_advisor", "deadline_s": DEADLINE_S} | fields
    return Request(model_folder=folder, dataset_path=path, max_seq_length=limit, **fields)


@pytest.mark.parametrize("save", [of_a_family, of_several_templates, of_a_vocabulary_and_merges])
def test_the_count_is_that_of_the_job_to_the_token(save, rows, tmp_path):
    save(tmp_path / "model")
    counted = count(request(tmp_path / "model", rows, specialization=""))
    examples = dataset.read(rows).examples
    own = count_tokens(load_tokenizer(tmp_path / "model"), examples, 32)
    assert own.trained > 0
    assert [tuple(segment) for segment in counted.preview] == own.preview
    counted.preview = own.preview
    assert counted == own


def test_a_tokenizer_that_cannot_be_loaded_is_a_fault_of_the_base_model(rows, tmp_path):
    folder = tmp_path / "model"
    byte_level(CHATML).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InvalidArgument, match=r"config\.base_model: the tokenizer cannot be loaded"):
        count(request(folder, rows, within="config."))


def test_a_template_that_never_ends_is_killed_at_the_deadline(rows, tmp_path):
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    byte_level(endless).save_pretrained(tmp_path / "model")
    with pytest.raises(DeadlineExceeded, match="after 1 s"):
        count(request(tmp_path / "model", rows, deadline_s=1.0))


def test_a_template_that_fills_the_memory_is_a_fault_of_the_base_model(rows, tmp_path):
    byte_level("{{ 'x' * 99999999999 }}").save_pretrained(tmp_path / "model")
    with pytest.raises(InvalidArgument, match=r"base_model: .* needs more than 2 GiB of memory"):
        count(request(tmp_path / "model", rows))


@pytest.mark.parametrize(
    ("ending", "error", "reason"),
    [
        (signal.SIGKILL, Unavailable, "killed"),
        (signal.SIGABRT, InvalidArgument, "base_model: .* crashes: its process was ended by SIGABRT"),
        (None, RuntimeError, "No module named"),
    ],
)
def test_a_process_that_ends_otherwise_is_told_by_how_it_ended(
    ending, error, reason, rows, tmp_path, monkeypatch
):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nkill -{ending or 0} $$\necho No module named x >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(error, match=reason):
        count(request(tmp_path, rows))


def test_a_tokenizer_that_panics_is_a_fault_of_the_base_model(rows, tmp_path, monkeypatch):
    class PanicException(BaseException):
        pass

    def panicking(folder):
        raise PanicException("index out of bounds")

    monkeypatch.setattr(tokenizer, "load_tokenizer", panicking)
    asked = {
        "model_folder": str(tmp_path),
        "dataset_path": str(rows),
        "specialization": "",
        "max_seq_length": 0,
    }
    assert child.answer(asked) == {
        "field": "base_model",
        "fault": "its tokenizer crashes: index out of bounds",
    }


def test_a_data_set_that_is_gone_is_a_fault_of_its_own(tmp_path):
    byte_level(CHATML).save_pretrained(tmp_path / "model")
    with pytest.raises(InvalidArgument, match=r"dataset_path: gone\.jsonl: no such file"):
        count(request(tmp_path / "model", tmp_path / "gone.jsonl"))


def test_a_trial_is_made_again_when_the_tokenizer_or_the_data_has_changed(tmp_path, rows, monkeypatch):
    folder = tmp_path / "model"
    byte_level(CHATML).save_pretrained(folder)
    asked = request(folder, rows, split=SPLIT, version=("digest", small_files(folder)))
    assert tried(asked).count.sequences == len(ROWS)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    assert tried(asked).count.sequences == len(ROWS)
    (folder / "chat_template.jinja").write_text(f"{CHATML} ")
    for changed in (("digest", small_files(folder)), ("other", small_files(folder))):
        with pytest.raises(FileNotFoundError):
            tried(request(folder, rows, split=SPLIT, version=changed))


def test_the_process_of_the_trainer_imports_no_tokenizers_of_transformers():
    program = "import neuroweaver.trainer.__main__, sys; print(*{'torch', 'transformers'} & set(sys.modules))"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
