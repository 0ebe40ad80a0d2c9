"""The PPO stage of a job: an algorithm with checkpoints in the job's folder."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from neuroweaver.mesh.machine.files import read_jsonl, write_jsonl
from neuroweaver.trainer.data.questions import without_system
from neuroweaver.trainer.data.turns import Messages
from neuroweaver.trainer.worker.data.chat import encode_prompt
from neuroweaver.trainer.worker.models.generation import save_ends
from neuroweaver.trainer.worker.models.lora import save_policy
from neuroweaver.trainer.worker.policy.ppo_losses import PPOConfig
from neuroweaver.trainer.worker.policy.ppo_trainer import PPOTrainer
from neuroweaver.trainer.worker.policy.rollout import Prompt
from neuroweaver.trainer.worker.process.checkpoints import (
    checkpoint_step,
    last_checkpoint,
    load_state,
    save_state,
)
from neuroweaver.trainer.worker.process.monitor import Monitor
from neuroweaver.trainer.worker.process.stages import Result, Stages
from neuroweaver.v1 import trainer_pb2 as pb

# A step lost to a crash is repeated; a checkpoint of an adapter and its optimizer is small.
CHECKPOINT_EVERY: Final = 5


def optimize_policy(
    model: Any,
    tokenizer: Any,
    scorer: Any,
    conversations: Sequence[Messages],
    config: pb.TrainingConfig,
    folder: Path,
    monitor: Monitor,
    stages: Stages,
    algorithm: type[PPOTrainer] = PPOTrainer,
) -> Result:
    """Runs an algorithm from its last checkpoint in `folder`, and saves the adapter there.

    scorer: a RewardModel. conversations: each up to where the assistant answers. Raises Stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [prompt_of(tokenizer, messages) for messages in conversations]
    asked = {
        prompt.text: without_system(messages) for prompt, messages in zip(prompts, conversations, strict=True)
    }

    def reward(texts: list[str], responses: list[str]) -> torch.Tensor:
        scores: torch.Tensor = scorer.score([asked[text] for text in texts], responses)
        return scores

    trainer = algorithm(model, tokenizer, reward, ppo_config(config))
    history = _resume(trainer, folder, stages)
    # A step that is interrupted has moved some weights already.
    state = copy.deepcopy(trainer.state_dict())
    try:
        for step in trainer.train(prompts, config.ppo_steps, monitor):
            state = copy.deepcopy(trainer.state_dict())
            history.append({"step": step.step, **step.metrics()})
            if step.step % CHECKPOINT_EVERY == 0:
                _save(state, history, folder)
                stages.checkpoint_saved(step.step)
    finally:
        # A cancelled job keeps what is whole: the state after the last finished step.
        _save(state, history, folder)
    save_policy(model, folder / "adapter")
    save_ends(model.get_base_model(), tokenizer, folder / "adapter")
    return summary(history, trainer.stop_reason) | {"adapter": f"{folder.name}/adapter"}


def prompt_of(tokenizer: Any, messages: Messages) -> Prompt:
    ids = encode_prompt(tokenizer, messages)
    return Prompt(text=tokenizer.decode(ids), input_ids=tuple(ids))


def ppo_config(config: pb.TrainingConfig) -> PPOConfig:
    batch_size = config.ppo_batch_size
    minibatch_size = max(2, math.ceil(batch_size / 2))
    return PPOConfig(
        batch_size=batch_size,
        minibatch_size=minibatch_size,
        micro_batch_size=min(minibatch_size, 8),
        epochs=config.ppo_epochs,
        max_new_tokens=config.max_new_tokens,
        learning_rate=config.ppo_learning_rate,
        kl_coeff=config.kl_coeff,
        target_kl=config.target_kl or None,
        # Far above the target the reward model is asked about text that it has never seen.
        max_kl=5 * config.target_kl if config.target_kl else None,
        seed=config.seed,
    )


def _resume(trainer: PPOTrainer, folder: Path, stages: Stages) -> list[dict[str, Any]]:
    """The history up to the last checkpoint, from which the trainer goes on."""
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        return []
    trainer.load_state_dict(load_state(checkpoint, trainer.device))
    stages.rewound(trainer.steps_done)
    return [step for step in read_jsonl(folder / "steps.jsonl") if step["step"] <= trainer.steps_done]


def _save(state: dict[str, Any], history: Sequence[dict[str, Any]], folder: Path) -> None:
    last = last_checkpoint(folder)
    if last is None or checkpoint_step(last) < state["steps_done"]:
        write_jsonl(folder / "steps.jsonl", history)
        save_state(folder, state["steps_done"], state)


def summary(history: Sequence[dict[str, Any]], stop_reason: str) -> Result:
    """reward_first and reward_last: means over the first and the last tenth of the steps.

    kl_last: by the estimator that is never below 0, as a distance is.
    """
    rewards = [step["reward"] for step in history if "reward" in step]
    tenth = max(1, len(rewards) // 10)
    return {
        "steps": len(history),
        "reward_first": sum(rewards[:tenth]) / max(len(rewards[:tenth]), 1),
        "reward_last": sum(rewards[-tenth:]) / max(len(rewards[-tenth:]), 1),
        "kl_last": history[-1].get("kl_k3", 0.0) if history else 0.0,
        "stop_reason": stop_reason,
    }
