from __future__ import annotations

import json
from pathlib import Path

import pytest

from base_models.families import NAMED
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.trainer.control.admission import ServerCapabilities, admit, validate
from neuroweaver.trainer.data.rows import Severity
from neuroweaver.v1 import trainer_pb2 as pb
from trainer.tiny import tiny_llama

DEADLINE_S = 120.0


@pytest.fixture
def capabilities(tmp_path: Path, counting_here: None) -> ServerCapabilities:
    folder = tiny_llama(tmp_path / "models" / "tiny")
    NAMED["Gemma"].tokenizer().save_pretrained(folder)
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"question": "check the oil", "answer": "Replace it"},
        {"messages": [{"role": role, "content": f"the {role}"} for role in ("user", "user", "assistant")]},
    ]
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "good.jsonl").write_text(json.dumps(rows[0]) + "\n")
    return ServerCapabilities(home=tmp_path, data_folder=data)


def write(capabilities: ServerCapabilities, *chats: list[tuple[str, str]]) -> None:
    rows = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (capabilities.data_folder / "rows.jsonl").write_text(text)


def config(**fields: object) -> pb.TrainingConfig:
    return pb.TrainingConfig(
        model_name="advisor",
        base_model="tiny",
        specialization="service_advisor",
        dataset_path="rows.jsonl",
        enable_rlaif=False,
        **fields,
    )


def test_a_job_whose_template_refuses_a_row_is_refused_by_the_base_model_and_the_line(capabilities):
    reason = "config.base_model: tiny cannot be trained on line 2 of rows.jsonl: .* must alternate"
    with pytest.raises(InvalidArgument, match=reason):
        admit(config(), capabilities, deadline_s=DEADLINE_S)


def test_a_validation_finds_the_rows_that_the_template_refuses(capabilities):
    found = validate(
        "rows.jsonl",
        capabilities,
        specialization="service_advisor",
        base_model="tiny",
        deadline_s=DEADLINE_S,
    )
    assert not found.inspection.is_usable
    assert (found.inspection.usable, found.inspection.errors) == (1, 1)
    finding = found.inspection.findings[0]
    assert (finding.line, finding.severity) == (2, Severity.ERROR)
    assert finding.reason == (
        "tiny cannot be trained on it: the chat template refuses it: Conversation roles must alternate"
    )
    assert found.count.preview[0][0].startswith("<bos><start_of_turn>user\nYou are a service advisor")


@pytest.mark.parametrize(("seed", "steps"), [(0, 6), (1, 4)])
def test_the_steps_of_a_job_are_those_of_the_sequences_that_it_trains_on(seed, steps, capabilities, tmp_path):
    """Qwen 3's template gives one for each answer; one of the three conversations is held out."""
    NAMED["Qwen 3"].tokenizer().save_pretrained(tmp_path / "models" / "tiny")
    long = [[(role, f"the {role} {number}") for role in ("user", "assistant") * 3] for number in (1, 2)]
    write(capabilities, *long, [("user", "another"), ("assistant", "answer")])
    asked = config(batch_size=1, gradient_accumulation_steps=1, epochs=1, seed=seed, warmup_steps=steps - 1)
    assert admit(asked, capabilities, deadline_s=DEADLINE_S).config.warmup_steps == steps - 1
    asked.warmup_steps = steps
    with pytest.raises(InvalidArgument, match=f"{steps} steps over 2 rows to learn from"):
        admit(asked, capabilities, deadline_s=DEADLINE_S)
