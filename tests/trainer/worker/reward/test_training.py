from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from neuroweaver.trainer.worker.models.base import load
from neuroweaver.trainer.worker.process.monitor import Silent, Stopped
from neuroweaver.trainer.worker.reward import training
from neuroweaver.trainer.worker.reward.network import RewardModel, bradley_terry_loss
from neuroweaver.trainer.worker.reward.preferences import NotEnoughFeedback, PreferencePair
from neuroweaver.trainer.worker.reward.training import RewardConfig, train_reward_model
from trainer.recorder import Recorder

# The judge of these tests prefers answers that speak of brakes, whatever their length.
PAIRS = [
    PreferencePair(
        [{"role": "user", "content": f"question {number}"}],
        chosen=f"brakes {'part ' * (number % 5)}",
        rejected=f"lease {'part ' * ((number + 2) % 5)}",
    )
    for number in range(40)
]
QUICK = RewardConfig(
    epochs=2, max_seq_length=2048, seed=0, lora_r=4, lora_alpha=8, learning_rate=5e-3, head_learning_rate=2e-2,
    batch_size=4, save_steps=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def base(folder):
    return folder


def train(base: Path, folder: Path, *, config=QUICK, pairs=PAIRS, monitor=None, resume=False):
    return train_reward_model(
        *load(base), pairs[:32], pairs[32:], config=config, folder=folder, monitor=monitor or Silent(), resume=resume
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    monitor = Recorder()
    return train(base, tmp_path_factory.mktemp("reward"), monitor=monitor), monitor


def test_the_loss_is_minus_log_sigmoid_of_the_difference():
    loss = bradley_terry_loss(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0]))
    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))) / 2
    assert loss.item() == pytest.approx(by_hand, abs=1e-6)


def test_it_learns_a_preference_that_holds_for_unseen_prompts(trained):
    result, _ = trained
    assert result.accuracy == 1.0
    assert result.accuracy_lower == pytest.approx(8 / (8 + 1.959964**2))  # Wilson's lower bound for 8 of 8
    assert result.accuracy_upper == pytest.approx(1.0)
    assert result.loss_before == pytest.approx(math.log(2), abs=0.3)
    assert result.loss_after < result.loss_before / 2


def test_the_length_rule_stands_beside_it(trained):
    result, _ = trained
    shorter = sum(len(pair.chosen) < len(pair.rejected) for pair in PAIRS[32:])
    equal = sum(len(pair.chosen) == len(pair.rejected) for pair in PAIRS[32:])
    assert result.length_rule_accuracy == pytest.approx((8 - shorter - equal / 2) / 8)


def test_every_step_is_reported(trained):
    result, monitor = trained
    assert [entry["step"] for entry in monitor.reports] == list(range(17))
    assert [entry["loss"] for entry in monitor.reports[1:]] == list(result.losses)
    assert monitor.reports[1]["learning_rate"] < monitor.reports[2]["learning_rate"]
    assert monitor.reports[-1]["learning_rate"] < 1e-3


def test_scores_of_the_training_responses_have_mean_0_and_deviation_1(base, trained):
    reward = RewardModel.load(trained[0].folder, *load(base))
    prompts = [pair.messages for pair in PAIRS[:32]] * 2
    scores = reward.score(
        prompts, [pair.chosen for pair in PAIRS[:32]] + [pair.rejected for pair in PAIRS[:32]]
    )
    assert scores.dtype == torch.float32
    assert scores.shape == (64,)
    assert scores.mean().item() == pytest.approx(0, abs=1e-3)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert (scores[:32] > scores[32:]).all()


def test_padding_changes_no_score_though_it_shares_an_id_with_the_end_of_sequence(base, tmp_path):
    loaded, tokenizer = load(base, dtype=torch.float32)
    reward = RewardModel.fresh(loaded, tokenizer, LoraConfig(r=2, target_modules="all-linear"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    short, long = [4, 9, tokenizer.eos_token_id], list(range(3, 60))
    alone = reward.raw_scores([short], 1)
    together = reward.raw_scores([long, short], 2)
    assert together[1].item() == pytest.approx(alone[0].item(), abs=1e-6)
    assert reward.raw_scores([short[:2]], 1)[0].item() != pytest.approx(alone[0].item(), abs=1e-6)


def test_the_score_head_stays_in_full_precision_on_a_half_precision_base(base, trained):
    reward = RewardModel.load(trained[0].folder, *load(base, dtype=torch.bfloat16))
    assert reward.model.get_base_model().dtype == torch.bfloat16
    assert reward.head.weight.dtype == torch.float32
    assert reward.forward([[5, 6, 7]]).dtype == torch.float32


def test_over_long_pairs_are_left_out_and_counted(base, tmp_path):
    long = PreferencePair([{"role": "user", "content": "q"}], chosen="brakes " * 100, rejected="lease")
    config = replace(QUICK, epochs=1, max_seq_length=64)
    result = train_reward_model(
        *load(base), [*PAIRS[:4], long], [*PAIRS[32:34], long], config=config, folder=tmp_path, monitor=Silent(),
        resume=False,
    )  # fmt: skip
    assert (result.train_pairs, result.heldout_pairs, result.dropped) == (4, 2, 2)
    with pytest.raises(NotEnoughFeedback, match="64 tokens"):
        train(base, tmp_path, config=config, pairs=[long])


def test_a_step_in_small_parts_learns_what_it_would_learn_in_one(base, tmp_path, monkeypatch):
    config = replace(QUICK, epochs=1)
    whole = train(base, tmp_path / "whole", config=config)
    monkeypatch.setattr(training, "MICRO_BATCH_TOKENS", 1)
    parts = train(base, tmp_path / "parts", config=config)
    assert parts.losses == pytest.approx(whole.losses, rel=0.05, abs=1e-3)
    assert parts.loss_after == pytest.approx(whole.loss_after, rel=0.1, abs=1e-3)


def test_a_stopped_run_resumes_to_the_same_losses_and_weights(base, tmp_path, trained):
    expected, _ = trained
    with pytest.raises(Stopped):
        train(base, tmp_path, monitor=Recorder(stop_at_check=8))  # 1 for the check before, then step 7
    monitor = Recorder()
    result = train(base, tmp_path, monitor=monitor, resume=True)
    assert monitor.reports[0]["step"] == 4
    assert replace(result, folder=expected.folder) == expected


def test_resuming_a_finished_run_gives_its_result_again(base, tmp_path):
    config = replace(QUICK, epochs=1)
    first = train(base, tmp_path, config=config)
    monitor = Recorder()
    assert train(base, tmp_path, config=config, monitor=monitor, resume=True) == first
    assert monitor.steps == [4, 5, 6, 7, 8]


def test_training_leaves_the_callers_random_state_alone(base, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(base, tmp_path, config=replace(QUICK, epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_real_preferences_favour_length_and_a_reward_model_trains_on_them(base, tmp_path):
    default = Path(__file__).resolve().parents[5] / "shared" / "data"
    file = Path(os.environ.get("NEUROWEAVER_TEST_DATA", default)) / "preferences" / "train.jsonl"
    if not file.is_file():
        warnings.warn(f"real preferences are missing: {file}", stacklevel=1)
        pytest.skip(f"{file} is missing; set NEUROWEAVER_TEST_DATA")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = [
        PreferencePair([{"role": "user", "content": row["prompt"]}], row["chosen"], row["rejected"])
        for row in rows
    ]
    assert 0.5 < training.longer_is_better(pairs) < 0.8
    short = [pair for pair in pairs if len(pair.chosen) + len(pair.rejected) < 300][:40]
    assert len(short) == 40
    result = train(base, tmp_path, pairs=short, config=replace(QUICK, epochs=1, max_seq_length=512))
    assert result.train_pairs + result.heldout_pairs + result.dropped == 40
    assert 0 <= result.accuracy_lower <= result.accuracy <= result.accuracy_upper <= 1
    assert math.isfinite(result.loss_after)
