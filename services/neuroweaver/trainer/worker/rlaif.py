"""Reinforcement learning from AI feedback: responses, the judge's scores, a reward model, PPO."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

from neuroweaver.mesh.machine.files import read_jsonl, write_jsonl
from neuroweaver.trainer.data.questions import Question, without_system
from neuroweaver.trainer.domain.offers import ALGORITHMS
from neuroweaver.trainer.worker import concerns
from neuroweaver.trainer.worker.context import JobContext
from neuroweaver.trainer.worker.failures import explain
from neuroweaver.trainer.worker.judging.judge import JudgeItem
from neuroweaver.trainer.worker.models.generation import generate
from neuroweaver.trainer.worker.policy.stage import optimize_policy
from neuroweaver.trainer.worker.process.monitor import Monitor, Stopped
from neuroweaver.trainer.worker.process.stages import Result, as_message, as_result, name_of
from neuroweaver.trainer.worker.reward.network import RewardModel
from neuroweaver.trainer.worker.reward.preferences import (
    NotEnoughFeedback,
    group_feedback,
    pairs_from_feedback,
    why_no_more,
)
from neuroweaver.trainer.worker.reward.training import RewardConfig, train_reward_model
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import trainer_pb2 as pb

_LOG: Final = logging.getLogger(__name__)

RESPONSES: Final = "responses.jsonl"
FEEDBACK: Final = "feedback.jsonl"
POLICY_SOURCE: Final = "model"
DATASET_SOURCE: Final = "data set"
# With fewer pairs a reward model learns nothing that holds for other prompts.
MIN_PAIRS: Final = 8
SAMPLING_TEMPERATURE: Final = 1.0


def improve(context: JobContext, adapter: Path, result: pb.TrainingResult) -> Path:
    """The adapter to register: RLAIF's, or the given one where it was not asked for or failed."""
    if not context.config.enable_rlaif:
        result.rlaif_outcome = pb.RLAIF_OUTCOME_NOT_REQUESTED
        return adapter
    try:
        improved = learn_from_feedback(context, adapter, result)
    except Stopped:
        raise
    except Exception as error:
        if not context.config.fall_back_to_sft:
            raise
        _LOG.exception("RLAIF failed")
        failure = explain(error, context.stages.current)
        context.stages.notice(
            "RLAIF_FELL_BACK",
            f"RLAIF failed in stage {name_of(failure.stage)}, so the fine-tuned model is registered: "
            f"{failure.message}",
        )
        result.rlaif_outcome = pb.RLAIF_OUTCOME_FELL_BACK_TO_SFT
        result.rlaif_failure = f"{failure.reason}: {failure.message}"
        result.ClearField("reward_model")
        return adapter
    result.rlaif_outcome = pb.RLAIF_OUTCOME_APPLIED
    return improved


def learn_from_feedback(context: JobContext, adapter: Path, result: pb.TrainingResult) -> Path:
    config, run = context.config, context.stages.run
    count = config.rlaif_samples * config.responses_per_prompt
    run(pb.STAGE_RESPONSES, f"samples up to {count} responses", partial(respond, context, adapter))
    run(pb.STAGE_FEEDBACK, f"the judge {context.judge.name} scores them", partial(judge_responses, context))
    scorer = run(pb.STAGE_REWARD_MODEL, "learns the judge's preferences", partial(learn_rewards, context))
    interval = common_pb2.Interval(
        lower=scorer["accuracy_lower"], upper=scorer["accuracy_upper"], confidence=0.95
    )
    result.reward_model.CopyFrom(as_message(pb.RewardModelQuality, scorer, accuracy_interval=interval))
    optimized = run(
        pb.STAGE_PPO,
        f"improves the policy over {config.ppo_steps} steps",
        partial(optimize, context, adapter, context.folder / scorer["folder"]),
    )
    result.policy_optimization.CopyFrom(as_message(pb.PolicyOptimization, optimized))
    return context.folder / str(optimized["adapter"])


def questions_of(context: JobContext) -> list[Question]:
    """The prompts of RLAIF. Raises NotEnoughFeedback."""
    chosen = context.prepared.questions
    if len(chosen) < 2:
        raise NotEnoughFeedback(
            "RLAIF needs 2 questions with answers in the training data that leave room for max_new_tokens in "
            f"the base model's context, and there are {len(chosen)}: add rows, or set enable_rlaif to false"
        )
    return list(chosen)


def rows_about(questions: Mapping[str, Question], file: Path) -> list[dict[str, Any]]:
    """A file's rows. An earlier version also asked questions that leave no room for an answer."""
    return [row for row in read_jsonl(file) if row["prompt_id"] in questions]


def respond(context: JobContext, adapter: Path, monitor: Monitor) -> Result:
    """Samples responses of the fine-tuned model to questions of the training data."""
    config, questions = context.config, questions_of(context)
    asked = [question for question in questions for _ in range(config.responses_per_prompt)]
    with context.tuned_model(adapter) as (model, tokenizer):
        answers = generate(
            model,
            tokenizer,
            [question.messages for question in asked],
            max_new_tokens=config.max_new_tokens,
            temperature=SAMPLING_TEMPERATURE,
            seed=config.seed,
            monitor=monitor,
        )
    sampled = [
        {"prompt_id": question.id, "source": POLICY_SOURCE, "text": answer.text}
        for question, answer in zip(asked, answers, strict=True)
    ]
    # The data's own answer competes as well: from a model that has little to offer yet come pairs that
    # differ by chance alone, and a reward model learns nothing from them.
    references = [
        {"prompt_id": question.id, "source": DATASET_SOURCE, "text": question.reference}
        for question in questions
    ]
    write_jsonl(context.folder / RESPONSES, sampled + references)
    return {
        "prompts": len(questions),
        "responses": len(answers),
        "tokens": sum(len(answer.tokens) for answer in answers),
        "finished_fraction": sum(answer.finished for answer in answers) / len(answers),
    }


def judge_responses(context: JobContext, monitor: Monitor) -> Result:
    questions = {question.id: question for question in questions_of(context)}
    responses = rows_about(questions, context.folder / RESPONSES)
    items = [
        JudgeItem(question.text, response["text"], question.reference)
        for response in responses
        for question in [questions[response["prompt_id"]]]
    ]
    judgements = context.judge.score(items, context.specialization.rubric, monitor)
    feedback = [
        {**response, "score": judgement and judgement.score, "reason": judgement and judgement.reason}
        for response, judgement in zip(responses, judgements, strict=True)
    ]
    write_jsonl(context.folder / FEEDBACK, feedback)
    context.stages.notices(
        concerns.of_judging(judgements.count(None), len(judgements), context.judge.usage.cut)
    )
    # The metrics are those of the model's own responses.
    scores = [row["score"] for row in feedback if row["source"] == POLICY_SOURCE and row["score"] is not None]
    good = sum(score >= context.config.rlaif_threshold for score in scores)
    return {
        "judged": len(scores),
        "missing": judgements.count(None),
        "mean_score": sum(scores) / max(len(scores), 1),
        "good_fraction": good / max(len(scores), 1),
        "judge_tokens": context.judge.usage.tokens,
        "judge_cost_usd": context.judge.usage.cost_usd,
    }


def learn_rewards(context: JobContext, monitor: Monitor) -> Result:
    config = context.config
    questions = {question.id: question for question in questions_of(context)}
    feedback = rows_about(questions, context.folder / FEEDBACK)
    groups = group_feedback(feedback, lambda prompt_id: without_system(questions[prompt_id].messages))
    train, heldout = pairs_from_feedback(groups, rlaif_threshold=config.rlaif_threshold, seed=config.seed)
    if len(train) < MIN_PAIRS or not heldout:
        scores = [row["score"] for row in feedback if row["score"] is not None]
        raise NotEnoughFeedback(
            f"the feedback holds {len(train)} preference pairs to learn from and {len(heldout)} to check "
            f"with; at least {MIN_PAIRS} and 1 are needed: "
            + why_no_more(scores, groups, config.rlaif_threshold)
        )
    folder = context.folder / "reward_model"
    context.report_resume(folder)
    with context.base_model() as (model, tokenizer):
        outcome = train_reward_model(
            model,
            tokenizer,
            train,
            heldout,
            config=RewardConfig(
                epochs=config.reward_model_epochs, max_seq_length=config.max_seq_length, seed=config.seed
            ),
            folder=folder,
            monitor=monitor,
            resume=context.is_resumed,
        )
    if concerns.is_worse_than_chance(outcome):
        raise NotEnoughFeedback(
            f"{concerns.accuracy_of(outcome)}, which is worse than chance: raise rlaif_samples, choose "
            "another feedback_model, or set enable_rlaif to false"
        )
    context.stages.notices(concerns.of_reward_model(outcome, config))
    return as_result(outcome, context.folder)


def optimize(context: JobContext, adapter: Path, scorer_folder: Path, monitor: Monitor) -> Result:
    with context.tuned_model(adapter, is_trainable=True) as (model, tokenizer):
        result = optimize_policy(
            model,
            tokenizer,
            RewardModel.load(scorer_folder, *context.load_base()),
            [question.messages for question in questions_of(context)],
            context.config,
            context.folder / "ppo",
            monitor,
            context.stages,
            resolve_name(ALGORITHMS[context.config.algorithm]),
        )
    context.stages.notices(concerns.of_policy(result))
    return result
