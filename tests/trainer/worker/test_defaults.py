"""The worker computes with the job's configuration, and names no default of its own for what that says."""

from __future__ import annotations

import dataclasses

import pytest

from neuroweaver.trainer.domain.config import DEFAULTS, with_defaults
from neuroweaver.trainer.worker.policy.ppo_losses import PPOConfig
from neuroweaver.trainer.worker.policy.stage import ppo_config
from neuroweaver.trainer.worker.reward.training import RewardConfig
from neuroweaver.v1 import trainer_pb2 as pb

PPO = {
    "batch_size": "ppo_batch_size",
    "epochs": "ppo_epochs",
    "learning_rate": "ppo_learning_rate",
    "max_new_tokens": "max_new_tokens",
    "kl_coeff": "kl_coeff",
    "target_kl": "target_kl",
    "seed": "seed",
}


def test_policy_optimization_has_the_defaults_of_the_contract() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(PPOConfig)}

    assert {name: defaults[name] for name in PPO} == {
        name: getattr(DEFAULTS, field) for name, field in PPO.items()
    }


def test_policy_optimization_takes_every_parameter_from_the_job() -> None:
    given = pb.TrainingConfig(
        ppo_batch_size=6,
        ppo_epochs=3,
        ppo_learning_rate=0.25,
        max_new_tokens=9,
        kl_coeff=0.5,
        target_kl=1.5,
        seed=7,
    )
    config = ppo_config(with_defaults(given))

    assert {name: getattr(config, name) for name in PPO} == {
        name: getattr(given, field) for name, field in PPO.items()
    }


@pytest.mark.parametrize("name", ["epochs", "max_seq_length", "seed"])
def test_what_the_job_says_of_the_reward_model_has_no_second_default(name: str) -> None:
    (field,) = (field for field in dataclasses.fields(RewardConfig) if field.name == name)
    assert field.default is dataclasses.MISSING
