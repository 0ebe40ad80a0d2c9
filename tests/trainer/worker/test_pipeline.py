from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from neuroweaver.trainer.data.specialization import load_specializations
from neuroweaver.trainer.domain.config import with_defaults
from neuroweaver.trainer.worker.context import JobContext
from neuroweaver.trainer.worker.failures import Unfit
from neuroweaver.trainer.worker.models.lora import UnknownLayers
from neuroweaver.trainer.worker.pipeline import prepare
from neuroweaver.trainer.worker.process.monitor import Silent
from neuroweaver.trainer.worker.process.stages import Stages
from neuroweaver.v1 import trainer_pb2 as pb
from trainer.recorder import Events


class Noticed(Events):
    @property
    def notices(self):
        return {event.notice.reason: event.notice.message for event in self.seen}


def preparing(folder: Path, tmp_path: Path, rows, **config):
    """The context of a job over `rows`, with the events that it sends."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    asked = pb.TrainingConfig(
        base_model=str(folder), dataset_path="rows.jsonl", specialization="service_advisor", **config
    )
    job = pb.TrainingJob(
        config=with_defaults(asked), dataset_digest=hashlib.sha256(text.encode()).hexdigest()
    )
    events = Noticed()
    stages = Stages(tmp_path / "job", events, threading.Event())
    return JobContext(job, stages, tmp_path / "job", tmp_path, tmp_path, None, {}), events


def test_a_job_says_what_it_does_not_use_of_its_data(folder, tmp_path):
    rows = [{"question": f"q{n}", "answer": "a", "category": "oil", "label": n > 2} for n in range(8)]
    context, events = preparing(folder, tmp_path, rows)
    result = prepare(context, Silent())
    assert (result["rows"], result["train_rows"] + result["validation_rows"]) == (8, 5)
    assert events.notices == {
        "ROWS_LEFT_OUT": "3 rows were left out: they are marked as not to be learnt",
        "DATA_NOT_USED": "rows.jsonl:4: category: is not used (in 5 rows)",
    }


def test_a_job_tells_of_evaluation_prompts_that_it_learns(folder, tmp_path):
    first, second, *_ = load_specializations()["service_advisor"].evaluation_prompts
    rows = [{"question": text, "answer": "a"} for text in (f" {first.prompt.upper()}", second.prompt, "q")]
    context, events = preparing(folder, tmp_path, rows, seed=1, validation_fraction=0.01)
    prepare(context, Silent())
    trained = {row.messages[-2].content.strip().casefold() for row in context.prepared.train}
    learnt = [case.id for case in (first, second) if case.prompt.casefold() in trained]
    assert learnt
    assert events.notices["EVALUATION_PROMPTS_SEEN"].startswith(f"{len(learnt)} of the ")
    assert f"({', '.join(learnt)})" in events.notices["EVALUATION_PROMPTS_SEEN"]


def test_data_that_is_used_whole_needs_no_notice(folder, tmp_path):
    context, events = preparing(folder, tmp_path, [{"question": f"q{n}", "answer": "a"} for n in range(5)])
    prepare(context, Silent())
    assert events.notices == {}


def test_too_few_questions_for_rlaif_end_the_job_before_it_trains_unless_it_may_fall_back(folder, tmp_path):
    rows = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "a"}]
    with pytest.raises(Unfit, match="which have 1 "):
        prepare(preparing(folder, tmp_path, rows)[0], Silent())
    for config in ({"enable_rlaif": False}, {"fall_back_to_sft": True}):
        assert prepare(preparing(folder, tmp_path, rows, **config)[0], Silent())["train_rows"] == 1


def test_questions_that_leave_no_room_for_an_answer_are_not_asked(folder, tmp_path):
    rows = [{"question": f"q{n}" + " P0301" * 300 * (n % 2), "answer": "a"} for n in range(12)]
    context, events = preparing(folder, tmp_path, rows, seed=1)
    prepare(context, Silent())
    trained = [row.messages[-2].content for row in context.prepared.train]
    short = [text for text in trained if "P0301" not in text]
    assert sorted(question.text for question in context.prepared.questions) == sorted(short)
    assert events.notices == {
        "PROMPTS_TOO_LONG": f"{len(trained) - len(short)} questions are not asked in RLAIF: they leave no room "
        "for max_new_tokens, 128, in the base model's context"
    }


def test_evaluation_prompts_that_leave_no_room_end_the_job_before_it_trains(folder, tmp_path):
    rows = [{"question": f"q{n}", "answer": "a"} for n in range(5)]
    context, _ = preparing(folder, tmp_path, rows, max_new_tokens=400)
    with pytest.raises(Unfit, match=r"20 of the 20 evaluation prompts \(\S+ first\) .* 400, in"):
        prepare(context, Silent())


def test_one_conversation_is_no_data_set_and_says_so(folder, tmp_path):
    rows = [{"question": "q", "answer": answer} for answer in "ab"]
    context, _ = preparing(folder, tmp_path, rows)
    with pytest.raises(Unfit, match="holds one conversation"):
        prepare(context, Silent())


def test_layers_that_the_base_model_lacks_end_the_job_before_it_trains(folder, tmp_path):
    rows = [{"question": f"q{n}", "answer": "a"} for n in range(5)]
    context, _ = preparing(folder, tmp_path, rows, target_modules=["query_key_value"])
    with pytest.raises(UnknownLayers):
        prepare(context, Silent())


def test_a_template_beyond_the_embedding_ends_the_job_before_it_trains(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<|end|>", "pad_token": "[PAD]"})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|end|>")
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    tokenizer.save_pretrained(base)
    rows = [{"question": f"q{n}", "answer": "a"} for n in range(5)]
    with pytest.raises(Unfit, match=r"written with <\|end\|> \(320\), .* has 320 rows"):
        prepare(preparing(base, tmp_path, rows)[0], Silent())
