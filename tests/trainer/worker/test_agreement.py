"""What a validation, StartTraining and fine-tuning make of the same data set, of any layout and template."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from base_models.families import NAMED
from neuroweaver.base_models.rendering import TemplateRefuses
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.trainer.control.admission import ServerCapabilities, admit, validate
from neuroweaver.trainer.data import dataset
from neuroweaver.trainer.data.encoding import encode
from neuroweaver.trainer.data.rows import Example
from neuroweaver.trainer.data.specialization import system_prompts
from neuroweaver.trainer.data.split import split
from neuroweaver.trainer.data.turns import messages_of
from neuroweaver.trainer.worker.process.monitor import Silent
from neuroweaver.trainer.worker.sft.finetune import _Rows
from neuroweaver.v1 import trainer_pb2 as pb

DEADLINE_S = 600.0
LIMIT = 400
WORDS = [
    "check",
    "the",
    "oil",
    "and",
    "replace",
    "the",
    "pads",
    "of",
    "the",
    "engine",
    "yes",
    "<|im_end|>",
    "</s>",
    "<U>",
]
# What some templates refuse: the same side twice in a row, the assistant first, no answer at the end.
ORDERS = ("ua", "uaua", "uauaua", "suaua", "uau", "uaa", "uua", "aua")
ROLES = {"s": "system", "u": "user", "a": "assistant"}


def text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.choice((1, 5, 20, 200))))


def chat(draw: random.Random, orders: tuple[str, ...]) -> list[dict[str, Any]]:
    turns = [{"role": ROLES[side], "content": text(draw)} for side in draw.choice(orders)]
    if draw.random() < 0.2:
        next(turn for turn in turns if turn["role"] == "assistant")["weight"] = 0
    return turns


def conversation(draw: random.Random, orders: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{"from": turn["role"], "value": turn["content"]} for turn in chat(draw, orders)]


LAYOUTS: tuple[Callable[[random.Random, tuple[str, ...]], dict[str, Any]], ...] = (
    lambda draw, orders: {"messages": chat(draw, orders)},
    lambda draw, orders: {"conversations": conversation(draw, orders)},
    lambda draw, _: {"question": text(draw), "answer": text(draw), "context": draw.choice(("", "the oil"))},
    lambda draw, _: {"instruction": text(draw), "response": text(draw), "input": text(draw)},
    lambda draw, _: {"input": text(draw), "output": text(draw), "weight": draw.choice((0, 1, 1))},
    lambda draw, _: {"prompt": text(draw), "completion": text(draw), "system": "Be brief."},
    lambda draw, _: {"text": text(draw)},
)


def write(path: Path, draw: random.Random, orders: tuple[str, ...]) -> None:
    rows = [draw.choice(LAYOUTS)(draw, orders) for _ in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def capabilities(tmp_path: Path, counting_here: None) -> ServerCapabilities:
    (tmp_path / "data").mkdir()
    return ServerCapabilities(home=tmp_path, data_folder=tmp_path / "data")


def base_model(folder: Path, home: Path, family: str, vocab_size: int = 0) -> Any:
    base = home / "models" / "tiny"
    shutil.copytree(folder, base)
    tokenizer = NAMED[family].tokenizer()
    tokenizer.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": vocab_size or len(tokenizer)}))
    return tokenizer


def refuses(tokenizer: Any, example: Example) -> bool:
    try:
        encode(tokenizer, messages_of(example))
    except TemplateRefuses:
        return True
    return False


def start(capabilities: ServerCapabilities, **fields: Any) -> None:
    config = pb.TrainingConfig(
        model_name="advisor",
        base_model="tiny",
        specialization="service_advisor",
        dataset_path="rows.jsonl",
        max_seq_length=LIMIT,
        max_new_tokens=1,
        batch_size=1,
        gradient_accumulation_steps=1,
        epochs=1,
        **fields,
    )
    admit(config, capabilities, deadline_s=DEADLINE_S)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["ChatML", "Gemma", "Mistral Nemo", "Qwen 3", "Phi-3 as first published"])
def test_a_validation_and_the_start_of_a_job_and_its_fine_tuning_agree(
    family, seed, folder, capabilities, tmp_path
):
    tokenizer = base_model(folder, tmp_path, family)
    path = capabilities.data_folder / "rows.jsonl"
    # Half of the data sets hold nothing that any template refuses.
    write(path, random.Random(f"{family}{seed}"), ORDERS if seed % 2 else ORDERS[:4])
    found = validate(
        "rows.jsonl",
        capabilities,
        specialization="service_advisor",
        base_model="tiny",
        max_seq_length=LIMIT,
        deadline_s=DEADLINE_S,
    )
    examples = dataset.read(path, system_prompts=system_prompts(), specialization="service_advisor").examples
    refused = [example.line for example in examples if refuses(tokenizer, example)]
    assert [line for line, _ in found.count.refusals] == refused
    assert found.inspection.is_usable == (not refused)
    if refused:
        with pytest.raises(
            InvalidArgument, match=rf"^config\.base_model: .* line {refused[0]} of rows\.jsonl"
        ):
            start(capabilities)
        return
    parts = [
        _Rows.encoded(tokenizer, [messages_of(example) for example in part], LIMIT, Silent())
        for part in split(examples, 0.1, 42)
    ]
    assert found.count.trained == sum(chat.target_tokens for part in parts for chat in part.chats)
    assert found.count.sequences == sum(len(part.chats) for part in parts)
    assert found.count.unanswered == sum(part.dropped for part in parts)
    if any(not part.chats for part in parts):
        with pytest.raises(InvalidArgument, match=r"^config\.max_seq_length: none of the "):
            start(capabilities, enable_rlaif=False)
        return
    sequences = len(parts[0].chats)
    start(capabilities, enable_rlaif=False, warmup_steps=sequences - 1)
    with pytest.raises(InvalidArgument, match=f"^config.warmup_steps: .*, {sequences} steps"):
        start(capabilities, enable_rlaif=False, warmup_steps=sequences)
