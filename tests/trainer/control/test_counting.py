from __future__ import annotations

import asyncio
import hashlib
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
from neuroweaver.mesh.wire.threads import in_thread
from neuroweaver.trainer.control import counting
from neuroweaver.trainer.control.counting import Request, count, tried
from neuroweaver.trainer.data import __main__ as child
from neuroweaver.trainer.data import dataset
from neuroweaver.trainer.data.tokens import TokenCount, count_tokens
from neuroweaver.trainer.data.trial import Plan
from neuroweaver.trainer.domain.config import with_defaults
from neuroweaver.v1 import trainer_pb2 as pb

# Generous: a deadline that is met is never waited for.
DEADLINE_S = 120.0
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
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


def request(folder: Path | None, path: Path, **fields: object) -> Request:
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
    fields = {
        "specialization": "service_advisor",
        "deadline_s": DEADLINE_S,
        "dataset_digest": digest,
    } | fields
    return Request(model_folder=folder, dataset_path=path, **fields)


def counted(asked: Request) -> TokenCount:
    return count(asked, max_seq_length=32, base_model="tiny", vocab_size=0)[0]


def plan(**fields: object) -> Plan:
    names = {"base_model": "tiny", "specialization": "service_advisor"}
    config = with_defaults(pb.TrainingConfig(enable_rlaif=False, **names, **fields))
    return Plan.of(config, context_length=0, vocab_size=0)


@pytest.mark.parametrize("save", [of_a_family, of_several_templates, of_a_vocabulary_and_merges])
def test_the_count_is_that_of_the_job_to_the_token(save, rows, tmp_path):
    save(tmp_path / "model")
    of_the_process = counted(request(tmp_path / "model", rows, specialization=""))
    examples = dataset.read(rows).examples
    own = count_tokens(load_tokenizer(tmp_path / "model"), examples, 32)
    assert own.trained > 0
    assert [tuple(segment) for segment in of_the_process.preview] == own.preview
    of_the_process.preview = own.preview
    assert of_the_process == own


def test_a_tokenizer_that_cannot_be_loaded_is_a_fault_of_the_base_model(rows, tmp_path):
    folder = tmp_path / "model"
    byte_level(CHATML).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InvalidArgument, match=r"config\.base_model: the tokenizer cannot be loaded"):
        counted(request(folder, rows, within="config."))


def test_a_template_that_never_ends_is_killed_at_the_deadline(rows, tmp_path):
    byte_level(ENDLESS).save_pretrained(tmp_path / "model")
    with pytest.raises(DeadlineExceeded, match="after 1 s"):
        counted(request(tmp_path / "model", rows, deadline_s=1.0))


# Endless for what the answer of the second row says alone.
AT_A_ROW = "{% if 'pads' in (messages | string) %}" + ENDLESS + "{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("template", "where"), [(ENDLESS, "a chat of a few words"), (AT_A_ROW, "line 2 of the data")]
)
def test_a_template_that_never_ends_is_a_fault_of_the_base_model(
    template, where, rows, tmp_path, monkeypatch
):
    short = tmp_path / "python"
    short.write_text(
        f"#!{sys.executable}\nimport sys, runpy\nfrom neuroweaver.base_models import rendering\n"
        "rendering.CPU_S = 1\nsys.argv = ['counting', *sys.argv[4:]]\n"
        "runpy.run_module('neuroweaver.trainer.data', run_name='__main__')\n"
    )
    short.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(short))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    byte_level(template).save_pretrained(tmp_path / "model")
    for call in (counted, lambda asked: tried(asked, plan())):
        with pytest.raises(
            InvalidArgument, match=rf"config\.base_model: .* takes more than 10 s for {where}"
        ):
            call(request(tmp_path / "model", rows, within="config."))


def test_a_trial_is_given_up_before_its_call(rows, tmp_path, monkeypatch):
    byte_level(ENDLESS).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(counting, "CPU_S", 1)
    monkeypatch.setattr(counting, "TRIAL_SHARE", 0.0)
    with pytest.raises(DeadlineExceeded, match="of base_model after 1 s"):
        tried(request(tmp_path / "model", rows), plan())


def test_a_tokenizer_of_which_no_chat_can_be_made_is_a_fault_of_the_base_model(rows, tmp_path, monkeypatch):
    whole = byte_level(CHATML)
    whole.add_tokens(["x" * 5000], special_tokens=True)
    whole.save_pretrained(tmp_path / "model")
    with pytest.raises(InvalidArgument, match=r"base_model: its tokenizer has added tokens"):
        counted(request(tmp_path / "model", rows))


def test_a_template_that_fills_the_memory_is_a_fault_of_the_base_model(rows, tmp_path):
    byte_level("{{ 'x' * 99999999999 }}").save_pretrained(tmp_path / "model")
    with pytest.raises(InvalidArgument, match=r"base_model: .* needs more than 2 GiB of memory"):
        counted(request(tmp_path / "model", rows))


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
        counted(request(tmp_path, rows))


def test_a_tokenizer_that_panics_is_a_fault_of_the_base_model(rows, tmp_path, monkeypatch):
    class PanicException(BaseException):
        pass

    def panicking(*_, **options):
        raise PanicException("index out of bounds")

    monkeypatch.setattr(tokenizer.AutoTokenizer, "from_pretrained", panicking)
    asked = {"model_folder": str(tmp_path), "dataset_path": str(rows), "specialization": ""}
    assert child.answer(asked) == {
        "field": "base_model",
        "fault": "the tokenizer cannot be loaded: PanicException: index out of bounds",
    }


def test_a_data_set_that_is_gone_is_a_fault_of_its_own(tmp_path):
    byte_level(CHATML).save_pretrained(tmp_path / "model")
    with pytest.raises(InvalidArgument, match=r"dataset_path: gone\.jsonl: no such file"):
        counted(request(tmp_path / "model", tmp_path / "gone.jsonl"))


def test_a_data_set_that_changes_while_it_is_read_is_asked_for_again(rows, counting_here, tmp_path):
    byte_level(CHATML).save_pretrained(tmp_path / "model")
    for call in (counted, lambda asked: tried(asked, plan())):
        with pytest.raises(InvalidArgument, match=r"config\.dataset_path: has changed while it was read"):
            call(request(tmp_path / "model", rows, dataset_digest="0" * 64, within="config."))


class Asked(Exception):
    """A process would have been started."""


@pytest.mark.parametrize("change", ["template", "same size and time", "data", "format", "plan"])
def test_a_trial_is_made_again_when_anything_that_it_depends_on_has_changed(
    change, tmp_path, rows, counting_here, monkeypatch
):
    folder, fields = tmp_path / "model", {"max_seq_length": 100}
    byte_level(CHATML).save_pretrained(folder)
    first = tried(request(folder, rows), plan(**fields))
    assert first.is_whole
    monkeypatch.setattr(counting, "_ran", lambda *_: (_ for _ in ()).throw(Asked()))
    assert tried(request(folder, rows, deadline_s=1.0), plan(**fields)) == first
    template = folder / "chat_template.jinja"
    if change == "template":
        template.write_text(f"{CHATML} ")
    elif change == "same size and time":
        written = template.stat()
        template.write_text(CHATML.replace("message", "massage"))
        os.utime(template, ns=(written.st_atime_ns, written.st_mtime_ns))
    elif change == "data":
        rows.write_text(rows.read_text() * 2)
    elif change == "format":
        rows = rows.rename(rows.with_suffix(".csv"))
    else:
        fields = {"max_seq_length": 101}
    with pytest.raises(Asked):
        tried(request(folder, rows), plan(**fields))


def test_a_trial_for_which_there_was_no_time_is_not_remembered(tmp_path, rows, counting_here, monkeypatch):
    byte_level(CHATML).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(counting, "TRIAL_SHARE", 0.0)
    assert not tried(request(tmp_path / "model", rows), plan()).is_whole
    monkeypatch.setattr(counting, "TRIAL_SHARE", 0.5)
    assert tried(request(tmp_path / "model", rows), plan()).is_whole


async def test_the_process_ends_with_its_caller(tmp_path, rows, monkeypatch):
    """The template never ends, and the deadline is far."""
    byte_level(ENDLESS).save_pretrained(tmp_path / "model")
    started: list[subprocess.Popen] = []
    loop, has_started = asyncio.get_running_loop(), asyncio.Event()

    class Noted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)
            loop.call_soon_threadsafe(has_started.set)

    monkeypatch.setattr(counting.subprocess, "Popen", Noted)
    call = asyncio.create_task(in_thread(tried, request(tmp_path / "model", rows), plan()))
    await has_started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(started[0].wait) == -signal.SIGKILL


def test_the_process_of_the_trainer_imports_no_tokenizers_of_transformers():
    program = "import neuroweaver.trainer.__main__, sys; print(*{'torch', 'transformers'} & set(sys.modules))"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
