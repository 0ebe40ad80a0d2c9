"""Base model and tuned model side by side: loss on held-out rows, and a judge's view of both answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from neuroweaver.trainer.data.questions import ask
from neuroweaver.trainer.data.specialization import Specialization
from neuroweaver.trainer.data.turns import Messages
from neuroweaver.trainer.worker.judging.judge import Comparison, Judge, JudgeItem
from neuroweaver.trainer.worker.judging.judge import Verdict as Better
from neuroweaver.trainer.worker.models.generation import generate
from neuroweaver.trainer.worker.process.monitor import Monitor
from neuroweaver.trainer.worker.process.stages import Result
from neuroweaver.trainer.worker.validation.measures import Verdict, perplexity, win_rate
from neuroweaver.v1 import trainer_pb2 as pb

# The base model is A of each comparison, the tuned one B.
_OUTCOMES: Final[Mapping[Better | None, Verdict]] = {Better.A: "loss", Better.B: "win", Better.TIE: "tie"}


def evaluate(
    model: Any,
    tokenizer: Any,
    judge: Judge,
    specialization: Specialization,
    held_out: Sequence[Messages],
    config: pb.TrainingConfig,
    monitor: Monitor,
) -> tuple[list[dict[str, Any]], Result]:
    """A record a prompt with the fields of JudgedSample, and the numbers over all of them.

    model: a PEFT model; without its adapter it is the base model. Answers are greedy. Raises Stopped and
    JudgeUnavailable.
    """
    conversations = [
        ask(specialization.system_prompt, case.prompt) for case in specialization.evaluation_prompts
    ]

    def measure() -> tuple[list[str], float, float]:
        answers = generate(
            model,
            tokenizer,
            conversations,
            max_new_tokens=config.max_new_tokens,
            temperature=0.0,
            seed=config.seed,
            monitor=monitor,
        )
        loss = perplexity(model, tokenizer, held_out, monitor, max_length=config.max_seq_length)
        return [answer.text for answer in answers], loss.mean, loss.perplexity

    tuned, loss_after, perplexity_after = measure()
    with model.disable_adapter():
        base, loss_before, perplexity_before = measure()
    samples = _judged(judge, specialization, base, tuned, monitor)
    return samples, {
        "loss_before": loss_before,
        "loss_after": loss_after,
        "perplexity_before": perplexity_before,
        "perplexity_after": perplexity_after,
        **asdict(win_rate(sample["verdict"] for sample in samples)),
        "base_score": _mean(sample["base_score"] for sample in samples),
        "tuned_score": _mean(sample["tuned_score"] for sample in samples),
    }


def _judged(
    judge: Judge, specialization: Specialization, base: Sequence[str], tuned: Sequence[str], monitor: Monitor
) -> list[dict[str, Any]]:
    prompts, rubric = specialization.evaluation_prompts, specialization.rubric
    items = [
        JudgeItem(case.prompt, answer, case.reference)
        for case, *answers in zip(prompts, base, tuned, strict=True)
        for answer in answers
    ]
    scores = judge.score(items, rubric, monitor)
    comparisons = [
        Comparison(case.prompt, a, b, case.reference) for case, a, b in zip(prompts, base, tuned, strict=True)
    ]
    verdicts = judge.compare(comparisons, rubric, monitor)
    return [
        {
            "prompt_id": case.id,
            "prompt": case.prompt,
            "reference": case.reference,
            "base_response": comparison.a,
            "tuned_response": comparison.b,
            "base_score": base_score and base_score.score,
            "tuned_score": tuned_score and tuned_score.score,
            "verdict": _OUTCOMES.get(verdict),
            "reason": tuned_score.reason if tuned_score else "",
        }
        for case, comparison, base_score, tuned_score, verdict in zip(
            prompts, comparisons, scores[0::2], scores[1::2], verdicts, strict=True
        )
    ]


def _mean(scores: Iterable[float | None]) -> float:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else 0.0
