"""What a person should know of training that ended well and yet did nothing, or harm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from neuroweaver.trainer.worker.process.stages import Result
from neuroweaver.trainer.worker.reward.training import RewardModelResult
from neuroweaver.trainer.worker.sft.finetune import SFTResult
from neuroweaver.v1 import trainer_pb2 as pb


class Concern(NamedTuple):
    """A notice."""

    reason: str
    message: str


CHANCE: Final = 0.5
# The means over a tenth of fewer steps are noise.
MIN_POLICY_STEPS: Final = 10
# Fewer equal scores may be equal by chance.
MIN_SCORES: Final = 8


def of_fine_tuning(outcome: SFTResult, config: pb.TrainingConfig) -> Iterator[Concern]:
    limit = f"max_seq_length, {config.max_seq_length} tokens"
    if outcome.dropped:
        yield Concern(
            "ROWS_DROPPED", f"{outcome.dropped} rows were left out: no answer begins within {limit}"
        )
    if outcome.unmeasured:
        yield Concern(
            "ROWS_UNMEASURED",
            f"{outcome.unmeasured} validation rows were left out: no answer begins within {limit}",
        )
    if outcome.truncated:
        yield Concern("ROWS_TRUNCATED", f"{outcome.truncated} rows were cut at {limit}")
    steps = len(outcome.losses)
    if config.warmup_steps >= steps:
        yield Concern(
            "WARMUP_TOO_LONG",
            f"fine-tuning ended after {steps} steps, before the learning rate had risen over warmup_steps, "
            f"{config.warmup_steps}: lower warmup_steps, or raise epochs",
        )
    if outcome.loss_after >= outcome.loss_before:
        yield Concern(
            "NOTHING_LEARNED",
            f"the loss on held-out rows did not fall: {outcome.loss_before:.3f} before fine-tuning, "
            f"{outcome.loss_after:.3f} after its {steps} steps",
        )
    if outcome.without_adapter:
        layers = ", ".join(outcome.without_adapter)
        yield Concern(
            "LAYERS_WITHOUT_ADAPTER",
            f"no layer of the base model is named {layers}, so that part of target_modules had no effect"
            if config.target_modules
            else f"{layers} of the base model got no adapter: no linear layers, they stay as they are",
        )


def of_judging(missing: int, judged: int, cut: int) -> Iterator[Concern]:
    """missing: of the `judged` judgements; cut: texts of which the judge read the beginning alone."""
    if missing:
        yield Concern(
            "JUDGEMENTS_MISSING",
            f"{missing} of {judged} judgements are missing, and the job goes on without them: see its log",
        )
    if cut:
        yield Concern("JUDGE_READ_IN_PART", f"of {cut} longer texts the judge read the beginning alone")


def of_reward_model(outcome: RewardModelResult, config: pb.TrainingConfig) -> Iterator[Concern]:
    if outcome.dropped:
        yield Concern(
            "PAIRS_DROPPED",
            f"{outcome.dropped} preference pairs were left out: longer than max_seq_length, "
            f"{config.max_seq_length} tokens",
        )
    if outcome.accuracy_lower <= CHANCE:
        yield Concern(
            "REWARD_MODEL_UNCERTAIN",
            f"{accuracy_of(outcome)}, so it may be no better than chance; raise rlaif_samples to know",
        )


def is_worse_than_chance(outcome: RewardModelResult) -> bool:
    """Whether a policy that follows the reward model would surely go against the judge."""
    return outcome.prompts_upper < CHANCE


def accuracy_of(outcome: RewardModelResult) -> str:
    interval = f"{outcome.accuracy_lower:.2f} to {outcome.accuracy_upper:.2f}"
    return (
        f"the reward model orders {outcome.accuracy:.0%} of {outcome.heldout_pairs} held-out pairs as the "
        f"judge did (95 % interval {interval})"
    )


def of_policy(result: Result) -> Iterator[Concern]:
    first, last = result["reward_first"], result["reward_last"]
    if result["steps"] >= MIN_POLICY_STEPS and last <= first:
        yield Concern(
            "REWARD_NOT_RAISED",
            f"policy optimisation did not raise the reward: {first:.3f} in its first steps, {last:.3f} in "
            "its last",
        )


def of_validation(samples: Sequence[Mapping[str, Any]], result: Result) -> Iterator[Concern]:
    if result["loss_after"] > result["loss_before"]:
        yield Concern(
            "LOSS_ROSE",
            f"the model to register predicts held-out rows worse than the base model: loss "
            f"{result['loss_after']:.3f}, {result['loss_before']:.3f} before",
        )
    if result["win_rate_upper"] < CHANCE:
        yield Concern(
            "WORSE_THAN_BASE",
            f"the judge prefers the base model: {result['wins']} wins, {result['losses']} losses, "
            f"{result['ties']} ties on unseen prompts",
        )
    given = [
        sample[name]
        for sample in samples
        for name in ("base_score", "tuned_score")
        if sample[name] is not None
    ]
    if len(given) >= MIN_SCORES and len(set(given)) == 1:
        yield Concern(
            "JUDGE_CONSTANT",
            f"the judge gave all {len(given)} answers {given[0]:.1f}, so its scores say nothing; choose "
            "another feedback_model",
        )
