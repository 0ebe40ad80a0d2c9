from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from base_models.families import NAMED
from neuroweaver.trainer.data.encoding import encode
from neuroweaver.trainer.domain.config import with_defaults
from neuroweaver.trainer.worker.models import base
from neuroweaver.trainer.worker.process.checkpoints import checkpoints
from neuroweaver.trainer.worker.process.monitor import Silent, Stopped
from neuroweaver.trainer.worker.process.optimizer import TrainingDiverged
from neuroweaver.trainer.worker.sft import finetune as training
from neuroweaver.trainer.worker.sft.finetune import NothingToLearn
from neuroweaver.trainer.worker.sft.trainer import ByLength
from neuroweaver.v1 import trainer_pb2 as pb
from trainer.recorder import Recorder

CHATS = [
    [
        {"role": "user", "content": f"question {number} about the {part}"},
        {"role": "assistant", "content": f"replace the {part} " * (1 + number % 3)},
    ]
    for number in range(4)
    for part in ("brakes", "pads", "discs")
]


def config_of(**fields) -> pb.TrainingConfig:
    """Three steps an epoch over CHATS."""
    quick = {
        "lora_r": 4,
        "lora_alpha": 8,
        "epochs": 2,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 5e-2,
        "seed": 0,
    }
    return with_defaults(pb.TrainingConfig(**quick | fields), context_length=2048)


QUICK = config_of()
ONE_STEP = config_of(epochs=0.3)
TWO_STEPS = config_of(epochs=0.6)


# Asked for before each is encoded, those held out too.
ENCODED = len(CHATS) + 3


def finetune(
    folder: Path,
    run: Path,
    *,
    config=QUICK,
    monitor=None,
    resume=False,
    chats=CHATS,
    heldout=None,
    quantization="none",
):
    model, tokenizer = base.load(folder, quantization=quantization)
    return training.finetune(
        model,
        tokenizer,
        chats,
        chats[:3] if heldout is None else heldout,
        config=config,
        folder=run,
        monitor=monitor or Silent(),
        resume=resume,
        save_steps=2,
    )


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted")
    monitor = Recorder()
    return finetune(folder, run, monitor=monitor), monitor


def test_training_lowers_the_loss_on_the_answers_it_saw(uninterrupted):
    result, _ = uninterrupted
    assert result.loss_after < result.loss_before - 0.1
    assert len(result.losses) == 6
    assert result.losses[-1] < result.losses[0]


def test_a_row_of_several_sequences_is_trained_on_all_of_them_and_counts_once(folder, tmp_path):
    model, tokenizer = base.load(folder)
    tokenizer.chat_template = NAMED["Qwen 3"].template
    rows = [[*chat, *chat] for chat in CHATS[:4]]
    config = config_of(epochs=1, batch_size=1, gradient_accumulation_steps=1, max_seq_length=200)
    long = [{"role": "user", "content": "question " * 300}, *CHATS[0][1:]]
    result = training.finetune(
        model, tokenizer, [*rows, long], [rows[0], long], config=config, folder=tmp_path / "run",
        monitor=Silent(), resume=False,
    )  # fmt: skip
    lengths = [[len(chat.cut(200).input_ids) for chat in encode(tokenizer, row)] for row in rows]
    assert all(len(row) == 2 for row in lengths)
    assert len(result.losses) == 8
    assert result.tokens == sum(map(sum, lengths))
    assert (result.examples, result.dropped, result.unmeasured) == (4, 1, 1)


def test_every_optimiser_step_is_reported_with_its_metrics(uninterrupted):
    result, monitor = uninterrupted
    start, *steps = monitor.reports
    assert start == {"step": 0, "total": 6, "tokens": 0}
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5, 6]
    assert [entry["loss"] for entry in steps] == list(result.losses)
    assert steps[0]["learning_rate"] == pytest.approx(5e-2)
    assert all(entry["grad_norm"] > 0 for entry in steps)
    assert steps[-1]["tokens"] == result.tokens > steps[0]["tokens"] > 0


def test_the_adapter_folder_loads_over_the_base_model_and_gives_the_reported_loss(folder, uninterrupted):
    from neuroweaver.trainer.worker.validation.measures import perplexity

    result, _ = uninterrupted
    model, tokenizer = base.load(folder)
    tuned = PeftModel.from_pretrained(model, result.adapter)
    assert perplexity(tuned, tokenizer, CHATS[:3], Silent()).mean == pytest.approx(
        result.loss_after, rel=1e-2
    )
    assert not list(result.adapter.glob("*.bin"))
    ends = json.loads((result.adapter / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_a_stopped_run_resumes_to_the_same_weights_bit_by_bit(folder, tmp_path, uninterrupted):
    expected, _ = uninterrupted
    at_step_6 = Recorder(stop_at_check=ENCODED + 13)  # 2 of validation lie between
    with pytest.raises(Stopped):
        finetune(folder, tmp_path, monitor=at_step_6)
    monitor = Recorder()
    result = finetune(folder, tmp_path, monitor=monitor, resume=True)
    assert result.resumed_from == 4
    assert monitor.reports[0]["step"] == 4
    assert result.losses == expected.losses
    assert result.tokens == expected.tokens
    weights, same = (load_file(one.adapter / "adapter_model.safetensors") for one in (result, expected))
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_a_run_killed_while_saving_resumes_from_the_checkpoint_before(folder, tmp_path, uninterrupted):
    script = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
import torch
torch.set_num_threads(1)
from pathlib import Path
from trainer.worker.sft import test_finetune
from transformers import Trainer
save = Trainer._save_rng_state
def die_half_way(self, folder):
    if self.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, folder)
Trainer._save_rng_state = die_half_way
test_finetune.finetune(Path({str(folder)!r}), Path({str(tmp_path)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, env=os.environ)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    result = finetune(folder, tmp_path, resume=True)
    expected, _ = uninterrupted
    assert result.resumed_from == 2
    assert result.losses == expected.losses
    assert not list(tmp_path.glob(".*partial*"))


def test_resuming_a_finished_run_gives_its_adapter_without_a_further_step(folder, tmp_path):
    first = finetune(folder, tmp_path, config=ONE_STEP)
    weights = load_file(first.adapter / "adapter_model.safetensors")
    monitor = Recorder()
    again = finetune(folder, tmp_path, config=ONE_STEP, monitor=monitor, resume=True)
    assert replace(again, loss_after=first.loss_after) == replace(first, resumed_from=1)
    assert again.loss_after == pytest.approx(first.loss_after, rel=1e-3)
    assert monitor.steps == []
    same = load_file(again.adapter / "adapter_model.safetensors")
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_starting_anew_forgets_what_the_folder_held(folder, tmp_path):
    with pytest.raises(Stopped):
        finetune(folder, tmp_path, monitor=Recorder(stop_at_check=ENCODED + 8))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
    again = finetune(folder, tmp_path, config=ONE_STEP, resume=False)
    assert again.resumed_from == 0
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1"]


def test_the_base_model_comes_back_as_it_was(folder, tmp_path):
    model, tokenizer = base.load(folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    forward = model.forward
    training.finetune(
        model, tokenizer, CHATS, [], config=config_of(epochs=0.6, gradient_checkpointing=True), folder=tmp_path,
        monitor=Silent(), resume=False,
    )  # fmt: skip
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.forward == forward
    assert not model.training
    assert not model.is_gradient_checkpointing


def test_a_quantised_base_model_trains_with_its_adapter_in_full_precision(folder, tmp_path):
    result = finetune(folder, tmp_path, quantization="nf4")
    assert result.loss_after < result.loss_before - 0.1
    weights = load_file(result.adapter / "adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_gradient_checkpointing_does_not_change_what_is_learned(folder, tmp_path, uninterrupted):
    config = config_of(gradient_checkpointing=True)
    expected, _ = uninterrupted
    assert finetune(folder, tmp_path, config=config).losses == pytest.approx(expected.losses, rel=1e-2)


def test_a_loss_that_is_no_number_ends_the_training(folder, tmp_path):
    model, tokenizer = base.load(folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match="step 1"):
        training.finetune(
            model, tokenizer, CHATS, [], config=QUICK, folder=tmp_path, monitor=Silent(), resume=False
        )
    assert not list(tmp_path.glob("checkpoint-*"))


def test_long_examples_are_cut_and_those_without_an_answer_left_are_dropped_and_counted(folder, tmp_path):
    asked_too_long = [{"role": "user", "content": "brakes " * 200}, {"role": "assistant", "content": "yes"}]
    answered_long = [{"role": "user", "content": "brakes"}, {"role": "assistant", "content": "yes " * 200}]
    config = config_of(max_seq_length=64, epochs=0.3)
    result = finetune(folder, tmp_path, config=config, chats=[*CHATS, asked_too_long, answered_long])
    assert (result.examples, result.truncated, result.dropped) == (len(CHATS) + 1, 1, 1)


def test_held_out_examples_without_an_answer_left_are_counted_and_refused_if_they_are_all(folder, tmp_path):
    asked_too_long = [{"role": "user", "content": "brakes " * 200}, {"role": "assistant", "content": "yes"}]
    config = config_of(max_seq_length=64, epochs=0.3)
    result = finetune(folder, tmp_path / "some", config=config, heldout=[CHATS[0], asked_too_long])
    assert result.unmeasured == 1
    monitor = Recorder()
    with pytest.raises(NothingToLearn, match=r"none of the 1 validation rows .* 64 tokens"):
        finetune(folder, tmp_path / "all", config=config, heldout=[asked_too_long], monitor=monitor)
    assert monitor.reports == []


def test_names_of_layers_that_the_model_lacks_are_counted(folder, tmp_path):
    config = config_of(epochs=0.3, target_modules=["q_proj", "value_proj"])
    assert finetune(folder, tmp_path, config=config).without_adapter == ("value_proj",)


def test_examples_without_any_answer_are_refused(folder, tmp_path):
    with pytest.raises(NothingToLearn, match="assistant turn"):
        finetune(folder, tmp_path, chats=[[{"role": "user", "content": "hello"}]])


def test_nothing_is_written_to_standard_output(folder, tmp_path, capfd):
    finetune(folder, tmp_path, config=TWO_STEPS)
    assert capfd.readouterr().out == ""


def test_a_batch_holds_examples_of_like_length_and_every_example_comes_once_an_epoch():
    lengths = [(7 * index) % 50 for index in range(50)]
    sampler = ByLength(lengths, 4, seed=1)
    order = list(sampler)
    assert sorted(order) == list(range(50))
    spreads = [
        max(batch) - min(batch)
        for start in range(0, 48, 4)
        for batch in [[lengths[index] for index in order[start : start + 4]]]
    ]
    assert sum(spreads) / len(spreads) < 10
    assert list(sampler) == order
    sampler.set_epoch(1)
    assert list(sampler) != order
