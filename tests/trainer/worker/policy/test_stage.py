from __future__ import annotations

import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from neuroweaver.mesh.machine.files import read_jsonl
from neuroweaver.trainer.domain.config import with_defaults
from neuroweaver.trainer.worker.models.base import load
from neuroweaver.trainer.worker.models.lora import load_policy
from neuroweaver.trainer.worker.policy.stage import optimize_policy, summary
from neuroweaver.trainer.worker.process.monitor import Stopped
from neuroweaver.trainer.worker.process.stages import Stages
from neuroweaver.v1 import trainer_pb2 as pb
from trainer.recorder import Events, Recorder

CONFIG = with_defaults(
    pb.TrainingConfig(ppo_steps=3, ppo_batch_size=4, max_new_tokens=4, ppo_learning_rate=1e-2, seed=0),
    context_length=512,
)
CONVERSATIONS = [[{"role": "user", "content": text}] for text in ("oil", "brakes squeal", "a lease")]
CHECKS_A_STEP = 9  # one at its start, two when it scores with each model, two an epoch when it updates


class LengthScorer:
    def score(self, prompts, responses):
        assert all(message["role"] != "system" for prompt in prompts for message in prompt)
        return torch.tensor([float(len(response)) for response in responses])


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter")
    get_peft_model(load(folder)[0], LoraConfig(r=4, target_modules="all-linear")).save_pretrained(path)
    return path


@pytest.fixture
def optimize(folder, adapter):
    def optimize(job, monitor):
        model, tokenizer = load(folder)
        policy = load_policy(model, adapter, is_trainable=True)
        events = Events()
        stages = Stages(job / "stages", events, threading.Event())
        result = optimize_policy(
            policy, tokenizer, LengthScorer(), CONVERSATIONS, CONFIG, job / "ppo", monitor, stages
        )
        return result, events.seen

    return optimize


def steps_of(folder):
    return [
        {name: value for name, value in step.items() if not name.endswith("_s")}
        for step in read_jsonl(folder / "ppo" / "steps.jsonl")
    ]


@pytest.mark.parametrize("stop_at_check", [2 * CHECKS_A_STEP + 1, 3 * CHECKS_A_STEP], ids=["start", "update"])
def test_a_run_stopped_within_a_step_resumes_to_the_same_steps_and_weights(optimize, tmp_path, stop_at_check):
    monitor = Recorder()
    expected, _ = optimize(tmp_path / "whole", monitor)
    assert monitor.checks == 3 * CHECKS_A_STEP

    with pytest.raises(Stopped):
        optimize(tmp_path / "resumed", Recorder(stop_at_check=stop_at_check))
    monitor = Recorder()
    result, events = optimize(tmp_path / "resumed", monitor)

    assert [event.rewound.step for event in events if event.HasField("rewound")] == [2]
    assert monitor.steps == [3]
    assert result == expected
    assert steps_of(tmp_path / "resumed") == steps_of(tmp_path / "whole")
    weights, same = (
        load_file(tmp_path / name / "ppo" / "adapter" / "adapter_model.safetensors")
        for name in ("whole", "resumed")
    )
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_one_checkpoint_is_kept_and_the_result_speaks_of_all_steps(optimize, tmp_path):
    result, _ = optimize(tmp_path, Recorder())

    assert [path.name for path in (tmp_path / "ppo").glob("checkpoint-*")] == ["checkpoint-3"]
    steps = steps_of(tmp_path)
    assert result == {
        "steps": 3,
        "reward_first": steps[0]["reward"],
        "reward_last": steps[-1]["reward"],
        "kl_last": steps[-1]["kl_k3"],
        "stop_reason": "",
        "adapter": "ppo/adapter",
    }
    assert (tmp_path / "ppo" / "adapter" / "generation_config.json").is_file()


def test_a_distance_below_0_is_not_reported():
    history = [{"step": 1, "reward": 1.0, "kl_k1": -0.01, "kl_k3": 0.0002}]
    assert summary(history, "")["kl_last"] == 0.0002
