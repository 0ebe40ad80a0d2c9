from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from neuroweaver.statistics.wilson import wilson_interval
from neuroweaver.trainer.worker import concerns, rlaif
from neuroweaver.trainer.worker.judging.judge import Judgement, Usage
from neuroweaver.trainer.worker.reward.preferences import NotEnoughFeedback
from neuroweaver.trainer.worker.reward.training import RewardModelResult
from neuroweaver.trainer.worker.sft.finetune import SFTResult
from neuroweaver.v1 import trainer_pb2 as pb


def tuned(**changes):
    outcome = {
        "adapter": "adapter",
        "loss_before": 4.0,
        "loss_after": 3.0,
        "losses": (4.0,) * 6,
        "tokens": 100,
        "resumed_from": 0,
        "examples": 24,
        "truncated": 0,
        "dropped": 0,
    }
    return SFTResult(**outcome | changes)


def scorer(folder, right, pairs, *, right_prompts=1, prompts=1):
    lower, upper = wilson_interval(right, pairs)
    return RewardModelResult(
        folder=folder,
        accuracy=right / pairs,
        accuracy_lower=lower,
        accuracy_upper=upper,
        length_rule_accuracy=0.5,
        loss_before=0.7,
        loss_after=0.6,
        train_pairs=20,
        heldout_pairs=pairs,
        dropped=0,
        losses=(0.7,),
        prompts_upper=wilson_interval(right_prompts, prompts)[1],
    )


def reasons(found):
    return [concern.reason for concern in found]


CONFIG = pb.TrainingConfig(warmup_steps=0, max_seq_length=512)


@pytest.mark.parametrize(
    ("changes", "config", "reason", "words"),
    [
        ({}, {"warmup_steps": 6}, "WARMUP_TOO_LONG", "ended after 6 steps"),
        ({}, {"warmup_steps": 1000}, "WARMUP_TOO_LONG", "warmup_steps, 1000"),
        ({"loss_after": 4.0}, {}, "NOTHING_LEARNED", "4.000 before fine-tuning, 4.000 after its 6 steps"),
        ({"loss_after": 4.5}, {}, "NOTHING_LEARNED", "4.500"),
        ({"without_adapter": ("experts.up",)}, {}, "LAYERS_WITHOUT_ADAPTER", "experts.up"),
        (
            {"without_adapter": ("value_proj",)},
            {"target_modules": ["q_proj", "value_proj"]},
            "LAYERS_WITHOUT_ADAPTER",
            "no layer of the base model is named value_proj",
        ),
        ({"dropped": 2}, {}, "ROWS_DROPPED", "2 rows were left out"),
        ({"truncated": 3}, {}, "ROWS_TRUNCATED", "3 rows were cut at max_seq_length, 512 tokens"),
    ],
)
def test_fine_tuning_that_did_less_than_asked_says_so(changes, config, reason, words):
    asked = pb.TrainingConfig(**{"max_seq_length": 512} | config)
    [concern] = concerns.of_fine_tuning(tuned(**changes), asked)
    assert concern.reason == reason
    assert words in concern.message


def test_fine_tuning_that_did_its_work_says_nothing():
    asked = pb.TrainingConfig(warmup_steps=5, max_seq_length=512)
    assert list(concerns.of_fine_tuning(tuned(), asked)) == []
    without_rows = tuned(loss_before=float("nan"), loss_after=float("nan"))
    assert list(concerns.of_fine_tuning(without_rows, asked)) == []


@pytest.mark.parametrize(
    ("right", "pairs", "is_uncertain"),
    [(20, 20, False), (1, 1, True), (9, 20, True), (12, 20, True), (0, 6, True)],
)
def test_a_reward_model_whose_interval_holds_chance_says_so(tmp_path, right, pairs, is_uncertain):
    found = concerns.of_reward_model(scorer(tmp_path, right, pairs), CONFIG)
    assert reasons(found) == ["REWARD_MODEL_UNCERTAIN"] * is_uncertain


@pytest.mark.parametrize(
    ("right_prompts", "prompts", "is_worse"),
    [(0, 1, False), (0, 3, False), (0, 4, True), (2, 10, False), (1, 10, True)],
)
def test_a_reward_model_is_surely_worse_than_chance_over_conversations(
    tmp_path, right_prompts, prompts, is_worse
):
    outcome = scorer(tmp_path, 0, 40, right_prompts=right_prompts, prompts=prompts)
    assert concerns.is_worse_than_chance(outcome) is is_worse


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    """A function that runs the stage with a reward model of that outcome, and gives its result and notices."""

    def run(outcome):
        questions = [
            SimpleNamespace(id=f"q{n}", messages=[{"role": "user", "content": f"{n}?"}]) for n in range(9)
        ]
        rows = [
            {"prompt_id": f"q{n}", "source": "model", "text": text, "score": score}
            for n in range(9)
            for text, score in (("good", 6.0), ("bad", 1.0), ("worse", 0.0))
        ]
        (tmp_path / rlaif.FEEDBACK).write_text("".join(json.dumps(row) + "\n" for row in rows))
        notices = []
        context = SimpleNamespace(
            config=pb.TrainingConfig(rlaif_threshold=7.0, max_seq_length=512),
            folder=tmp_path,
            is_resumed=False,
            report_resume=lambda folder: None,
            base_model=nothing,
            stages=SimpleNamespace(notices=notices.extend),
        )
        monkeypatch.setattr(rlaif, "questions_of", lambda _: questions)
        monkeypatch.setattr(rlaif, "train_reward_model", lambda *_, **__: outcome)
        return rlaif.learn_rewards(context, None), notices

    return run


def nothing():
    return nullcontext((None, None))


def test_a_reward_model_worse_than_chance_goes_into_no_policy_optimisation(rewards, tmp_path):
    with pytest.raises(
        NotEnoughFeedback, match=r"orders 0% of 6 held-out pairs .*\(95 % interval 0\.00 to 0\.39\)"
    ):
        rewards(scorer(tmp_path / "m", 0, 6, right_prompts=0, prompts=6))


def test_a_reward_model_at_chance_goes_on_with_a_notice(rewards, tmp_path):
    result, notices = rewards(scorer(tmp_path / "m", 9, 20))
    assert result["accuracy"] == 0.45
    assert reasons(notices) == ["REWARD_MODEL_UNCERTAIN"]
    assert "45% of 20 held-out pairs" in notices[0].message


@pytest.mark.parametrize(
    ("steps", "first", "last", "told"),
    [(50, 1.0, 0.9, True), (50, 1.0, 1.0, True), (50, 1.0, 1.1, False), (3, 1.0, 0.9, False)],
)
def test_policy_optimisation_that_did_not_raise_the_reward_says_so(steps, first, last, told):
    found = concerns.of_policy({"steps": steps, "reward_first": first, "reward_last": last})
    assert reasons(found) == ["REWARD_NOT_RAISED"] * told


@pytest.mark.parametrize(
    ("missing", "cut", "told"),
    [(0, 0, []), (2, 0, ["JUDGEMENTS_MISSING"]), (2, 3, ["JUDGEMENTS_MISSING", "JUDGE_READ_IN_PART"])],
)
def test_judgements_that_are_missing_or_of_a_part_alone_are_told(missing, cut, told):
    found = list(concerns.of_judging(missing, 2, cut))
    assert reasons(found) == told
    assert all(str(number) in concern.message for number, concern in zip((missing, cut), found, strict=False))


def test_the_feedback_says_what_is_missing_and_passes_over_questions_that_are_no_longer_asked(tmp_path):
    question = SimpleNamespace(id="q0", text="0?", reference="a", messages=[])
    rows = [
        {"prompt_id": prompt, "source": "model", "text": text} for prompt in ("q0", "gone") for text in "ab"
    ]
    (tmp_path / rlaif.RESPONSES).write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged, notices = [], []

    def score(items, rubric, monitor):
        judged.extend(items)
        return [None, Judgement(8.0, "good")]

    context = SimpleNamespace(
        config=pb.TrainingConfig(rlaif_threshold=7.0),
        folder=tmp_path,
        prepared=SimpleNamespace(questions=(question, question)),
        specialization=SimpleNamespace(rubric=()),
        judge=SimpleNamespace(score=score, usage=Usage(cut=1)),
        stages=SimpleNamespace(notices=notices.extend),
    )
    result = rlaif.judge_responses(context, None)
    assert [item.response for item in judged] == ["a", "b"]
    assert (result["judged"], result["missing"]) == (1, 1)
    assert reasons(notices) == ["JUDGEMENTS_MISSING", "JUDGE_READ_IN_PART"]
    assert notices[0].message.startswith("1 of 2 judgements are missing")


def validated(**changes):
    return {
        "loss_before": 4.0,
        "loss_after": 3.0,
        "wins": 3,
        "losses": 15,
        "ties": 2,
        "win_rate_upper": 0.6,
    } | changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"loss_after": 4.1}, ["LOSS_ROSE"]), ({"win_rate_upper": 0.4}, ["WORSE_THAN_BASE"]), ({}, [])],
)
def test_a_model_worse_than_its_base_is_registered_with_a_notice(changes, reason):
    assert reasons(concerns.of_validation([], validated(**changes))) == reason


@pytest.mark.parametrize(
    ("scores", "told"),
    [([8.0] * 10, True), ([8.0] * 9 + [7.0], False), ([8.0] * 6, False), ([None] * 10, False)],
)
def test_a_judge_whose_scores_are_all_equal_is_named(scores, told):
    samples = [{"base_score": a, "tuned_score": b} for a, b in zip(scores[::2], scores[1::2], strict=True)]
    assert reasons(concerns.of_validation(samples, validated())) == ["JUDGE_CONSTANT"] * told
