"""A job's result in words: the verdict, and how certain it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from neuroweaver.client.text import number
from neuroweaver.v1 import trainer_pb2 as trainer
from neuroweaver.v1.common_pb2 import Interval

_FEW_COMPARISONS: Final = 30


def counted(rate: trainer.WinRate) -> int:
    """Comparisons with a verdict."""
    return rate.wins + rate.losses + rate.ties


def win_rate_line(rate: trainer.WinRate) -> str:
    """`72% (95% interval 50% to 87%): 14 won, 5 lost, 1 tied`; empty without a comparison."""
    if not counted(rate):
        return ""
    missing = f", {rate.missing} without a verdict" if rate.missing else ""
    counts = f"{rate.wins} won, {rate.losses} lost, {rate.ties} tied{missing}"
    return f"{rate.rate:.0%} ({interval_line(rate.interval)}): {counts}"


def interval_line(interval: Interval) -> str:
    """`95% interval 50% to 87%`."""
    return f"{interval.confidence:.0%} interval {interval.lower:.0%} to {interval.upper:.0%}"


def verdict(rate: trainer.WinRate) -> tuple[str, str]:
    """What the comparisons show, and how certain that is."""
    total = counted(rate)
    if not total:
        return "No answers could be compared", "The judge gave no verdict on any evaluation prompt."
    interval = rate.interval
    if interval.lower > 0.5:
        conclusion = "The tuned model is judged better than its base"
        certainty = "The whole interval lies above 50%: more than chance."
    elif interval.upper < 0.5:
        conclusion = "The tuned model is judged worse than its base"
        certainty = "The whole interval lies below 50%: more than chance."
    else:
        conclusion = "The comparison is inconclusive"
        certainty = "The interval includes 50%: the difference may be due to chance."
    if total < _FEW_COMPARISONS:
        width = (interval.upper - interval.lower) * 100
        certainty += f" {total} comparisons are few, so it is {width:.0f} points wide."
    if rate.missing:
        plural = "prompt" if rate.missing == 1 else "prompts"
        certainty += f" Not counted: {rate.missing} {plural} without a verdict."
    return conclusion, certainty


def facts(result: trainer.TrainingResult) -> Iterator[tuple[str, str]]:
    """Names and values, one line each."""
    yield "registered", f"{result.model_id}@{result.version}"
    yield "held-out loss", f"{number(result.loss_before)} → {number(result.loss_after)} nats per token"
    yield "perplexity", f"{number(result.perplexity_before)} → {number(result.perplexity_after)}"
    if result.HasField("reward_model"):
        quality = result.reward_model
        accuracy = (
            f"{quality.accuracy:.0%} of {quality.heldout_pairs} held-out pairs right "
            f"({interval_line(quality.accuracy_interval)}); "
            f"always picking the longer answer: {quality.length_rule_accuracy:.0%}"
        )
        yield "reward model", accuracy
    if result.HasField("policy_optimization"):
        ppo = result.policy_optimization
        stopped = f", stopped early: {ppo.stop_reason}" if ppo.stop_reason else ""
        yield (
            "PPO reward",
            f"{number(ppo.reward_first)} → {number(ppo.reward_last)} in {ppo.steps} steps{stopped}",
        )
        yield "PPO KL", f"{number(ppo.kl_last)} nats per response"
    yield "RLAIF skipped", result.rlaif_failure
    yield "win rate", win_rate_line(result.win_rate)
    yield "", " ".join(f"{part.rstrip('.')}." for part in verdict(result.win_rate))
    yield "judge", result.judge
