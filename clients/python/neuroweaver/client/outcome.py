"""A job's result in words: what it allows to be said, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from neuroweaver.client.text import number
from neuroweaver.v1 import trainer_pb2 as trainer

_FEW_COMPARISONS: Final = 30


def counted(rate: trainer.WinRate) -> int:
    """Comparisons with a verdict."""
    return rate.wins + rate.losses + rate.ties


def win_rate_line(rate: trainer.WinRate) -> str:
    """`72% (95% interval 50% to 87%): 14 won, 5 lost, 1 tied`; empty without a comparison."""
    if not counted(rate):
        return ""
    interval = rate.interval
    missing = f", {rate.missing} without a verdict" if rate.missing else ""
    return (
        f"{rate.rate:.0%} ({interval.confidence:.0%} interval {interval.lower:.0%} to {interval.upper:.0%}): "
        f"{rate.wins} won, {rate.losses} lost, {rate.ties} tied{missing}"
    )


def verdict(rate: trainer.WinRate) -> tuple[str, str]:
    """What the comparisons allow to be said, and how sure it is."""
    total = counted(rate)
    if not total:
        return "No answer could be compared", "The judge gave no verdict on any evaluation prompt."
    interval = rate.interval
    if interval.lower > 0.5:
        said = "The tuned model is judged better than its base"
        sure = "The whole interval lies above 50%: more than chance."
    elif interval.upper < 0.5:
        said = "The tuned model is judged worse than its base"
        sure = "The whole interval lies below 50%: more than chance."
    else:
        said = "Better or worse cannot be told yet"
        sure = "The interval holds 50%: chance alone could do this."
    if total < _FEW_COMPARISONS:
        width = (interval.upper - interval.lower) * 100
        sure += f" {total} comparisons are few, so it is {width:.0f} points wide."
    if rate.missing:
        plural = "prompt" if rate.missing == 1 else "prompts"
        sure += f" Not counted: {rate.missing} {plural} without a verdict."
    return said, sure


def facts(result: trainer.TrainingResult) -> Iterator[tuple[str, str]]:
    """Names and values, a line each."""
    yield "registered", f"{result.model_id}@{result.version}"
    yield "held-out loss", f"{number(result.loss_before)} → {number(result.loss_after)} nats per token"
    yield "perplexity", f"{number(result.perplexity_before)} → {number(result.perplexity_after)}"
    if result.HasField("reward_model"):
        quality, interval = result.reward_model, result.reward_model.accuracy_interval
        accuracy = (
            f"{quality.accuracy:.0%} of {quality.heldout_pairs} held-out pairs right "
            f"({interval.confidence:.0%} interval {interval.lower:.0%} to {interval.upper:.0%}); "
            f"the longer answer: {quality.length_rule_accuracy:.0%}"
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
    yield "RLAIF left out", result.rlaif_failure
    yield "win rate", win_rate_line(result.win_rate)
    yield "", " ".join(f"{part.rstrip('.')}." for part in verdict(result.win_rate))
    yield "judge", result.judge
