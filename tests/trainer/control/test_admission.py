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
def capabilities(tmp_path: Path) -> ServerCapabilities:
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
    reason = "config.base_model: the chat template of tiny refuses line 2 of rows.jsonl: .* must alternate"
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
    assert finding.reason == "the chat template of tiny refuses it: Conversation roles must alternate"
    assert found.count.preview[0][0].startswith("<bos><start_of_turn>user\nYou are a service advisor")


def test_the_steps_of_a_job_count_the_sequences_that_its_template_gives(capabilities, tmp_path):
    NAMED["Qwen 3"].tokenizer().save_pretrained(tmp_path / "models" / "tiny")
    turns = [{"role": role, "content": f"the {role}"} for role in ("user", "assistant") * 3]
    other = [{"role": "user", "content": "another"}, {"role": "assistant", "content": "answer"}]
    (capabilities.data_folder / "rows.jsonl").write_text(
        "".join(json.dumps({"messages": row}) + "\n" for row in (turns, other))
    )
    asked = config(batch_size=1, gradient_accumulation_steps=1, epochs=1, warmup_steps=3)
    assert admit(asked, capabilities, deadline_s=DEADLINE_S).config.warmup_steps == 3
    asked.warmup_steps = 4
    with pytest.raises(InvalidArgument, match="at most 4 steps over 2 rows"):
        admit(asked, capabilities, deadline_s=DEADLINE_S)
