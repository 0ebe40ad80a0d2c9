from __future__ import annotations

import pytest

from neuroweaver.trainer.worker.reward.preferences import (
    FeedbackGroup,
    PreferencePair,
    group_feedback,
    longer_is_better,
    ordered_prompts,
    pairs_from_feedback,
    why_no_more,
)


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def group(prompt: str, *scored: tuple[str, float | None]) -> FeedbackGroup:
    return FeedbackGroup(messages(prompt), dict(scored))


def all_pairs(*groups: FeedbackGroup, threshold: float = 7.0) -> list[PreferencePair]:
    train, heldout = pairs_from_feedback(groups, rlaif_threshold=threshold, seed=0)
    return train + heldout


def test_the_higher_score_is_chosen():
    (pair,) = all_pairs(group("q", ("bad", 2.0), ("good", 8.5)))
    assert (pair.chosen, pair.rejected) == ("good", "bad")
    assert pair.messages == messages("q")


def test_scores_closer_than_the_margin_make_no_pair():
    assert all_pairs(group("q", ("a", 4.0), ("b", 4.9))) == []
    assert len(all_pairs(group("q", ("a", 4.0), ("b", 5.0)))) == 1


def test_two_good_answers_make_no_pair():
    pairs = all_pairs(group("q", ("good", 7.0), ("best", 10.0), ("poor", 3.0)))
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {("good", "poor"), ("best", "poor")}


def test_a_missing_judgement_is_never_used():
    assert all_pairs(group("q", ("a", None), ("b", 2.0))) == []


def test_responses_to_different_prompts_make_no_pair():
    assert all_pairs(group("q", ("a", 1.0)), group("r", ("b", 9.0))) == []


def test_held_out_pairs_come_from_prompts_never_trained_on():
    groups = [group(f"q{n}", ("a", 1.0), ("b", 4.0), ("c", 9.0)) for n in range(20)]
    train, heldout = pairs_from_feedback(groups, rlaif_threshold=7.0, seed=0)
    prompts = [{pair.messages[0]["content"] for pair in part} for part in (train, heldout)]
    assert not prompts[0] & prompts[1]
    assert len(prompts[1]) == 4
    assert len(train) + len(heldout) == 60


def conversation(*texts: str) -> FeedbackGroup:
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return FeedbackGroup(turns, {"a": 1.0, "b": 9.0})


def test_a_conversation_and_its_continuation_are_held_out_together():
    groups = [
        conversation(f"q{n}", *more) for n in range(20) for more in ((), ("yes", "and?"), ("no", "why?"))
    ]
    for seed in range(5):
        parts = pairs_from_feedback(groups, rlaif_threshold=7.0, seed=seed)
        prompts = [{pair.messages[0]["content"] for pair in part} for part in parts]
        assert not prompts[0] & prompts[1]
        assert (len(prompts[1]), len(parts[1])) == (4, 12)


def test_a_greeting_that_begins_most_conversations_joins_them_not():
    groups = [conversation("Hello", "Hello!", f"q{n}") for n in range(19)] + [conversation("q19")]
    train, heldout = pairs_from_feedback(groups, rlaif_threshold=7.0, seed=0)
    assert (len(train), len(heldout)) == (16, 4)


def test_the_split_depends_on_the_seed_and_not_on_the_order():
    groups = [group(f"q{n}", ("a", 1.0), ("b", 4.0)) for n in range(20)]
    first, again = (
        {pair.messages[0]["content"] for pair in pairs_from_feedback(order, rlaif_threshold=7.0, seed=1)[1]}
        for order in (groups, groups[::-1])
    )
    other = {
        pair.messages[0]["content"] for pair in pairs_from_feedback(groups, rlaif_threshold=7.0, seed=2)[1]
    }
    assert first == again
    assert first != other


@pytest.mark.parametrize(("prompts", "held_out"), [(0, 0), (1, 0), (2, 1), (3, 1), (10, 2)])
def test_at_least_one_prompt_is_held_out_and_one_trained_on(prompts, held_out):
    groups = [group(f"q{n}", ("a", 1.0), ("b", 4.0)) for n in range(prompts)]
    train, heldout = pairs_from_feedback(groups, rlaif_threshold=7.0, seed=0)
    assert (len(train), len(heldout)) == (prompts - held_out, held_out)


def test_rows_group_by_conversation_whatever_their_ids_and_a_repeated_text_counts_once():
    rows = [
        {"prompt_id": "line-1", "text": "a", "score": None, "finished": True},
        {"prompt_id": "line-1", "text": "a", "score": 3.0, "finished": True},
        {"prompt_id": "line-2", "text": "b", "score": 8.0, "finished": True},
        {"prompt_id": "line-3", "text": "c", "score": 1.0, "finished": False},
    ]
    asked = {"line-1": "same", "line-2": "same", "line-3": "other"}
    groups = group_feedback(rows, lambda prompt_id: messages(asked[prompt_id]))
    assert groups == [group("same", ("a", 3.0), ("b", 8.0)), group("other", ("c", 1.0))]


def test_the_length_rule_prefers_the_longer_response_and_is_undecided_on_equal_ones():
    pairs = [
        PreferencePair(messages("q"), chosen, rejected)
        for chosen, rejected in [("long", "s"), ("s", "long"), ("same", "size"), ("longer", "long")]
    ]
    assert longer_is_better(pairs) == pytest.approx(2.5 / 4)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (
            [[8, 8, 8], [8, 8]],
            "does not tell answers apart, since all 5 got 8.0: choose another feedback_model",
        ),
        ([[8.1, 8.0], [8.4]], "since all 3 got 8.0 to 8.4"),
        ([[3, 3.5], [3.2]], "since all 3 got 3.0 to 3.5"),
        (
            [[7.5, 9], [10]],
            "all 3 answers got 7.5 or more, and two that reach rlaif_threshold, 7, make no pair",
        ),
        ([[2, 2.5], [6, 6]], "answers to one question apart, since their scores differ by less than 1"),
        ([[2, 6]], "raise rlaif_samples or responses_per_prompt"),
        ([[None]], "the judge scored no answer"),
    ],
)
def test_what_keeps_the_feedback_from_holding_pairs_is_named(scores, reason):
    groups = [
        group(f"q{n}", *((f"answer {m}", s) for m, s in enumerate(row))) for n, row in enumerate(scores)
    ]
    given = [score for row in scores for score in row if score is not None]
    assert reason in why_no_more(given, groups, rlaif_threshold=7.0)


def test_a_conversation_counts_once_however_many_pairs_it_has():
    pairs = [PreferencePair(messages(name), "good", f"bad {n}") for name in "abc" for n in range(4)]
    is_right = [True, False, True, False, False, False, False, True, True, True, True, True]
    assert ordered_prompts(pairs, is_right) == (2, 3)
