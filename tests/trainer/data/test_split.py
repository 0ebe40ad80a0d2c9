from __future__ import annotations

from collections import Counter

import pytest

from neuroweaver.trainer.data.rows import Example, Message
from neuroweaver.trainer.data.split import split


def examples(count: int) -> tuple[Example, ...]:
    turns = [(Message("user", f"question {n}"), Message("assistant", "yes")) for n in range(count)]
    return tuple(Example(messages, n + 1) for n, messages in enumerate(turns))


def chat(line: int, *texts: str) -> Example:
    roles = ("user", "assistant")
    return Example(tuple(Message(roles[n % 2], text) for n, text in enumerate(texts)), line)


def sides(rows, fraction=0.3, seed=0):
    """For each row whether it is held out."""
    _, validation = split(rows, fraction, seed)
    return [row in validation for row in rows]


def test_the_split_is_near_the_fraction_and_depends_on_the_seed():
    train, validation = split(examples(4000), 0.1, seed=1)
    assert len(train) + len(validation) == 4000
    # Four standard deviations of a binomial of 4,000 at 0.1.
    assert abs(len(validation) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5
    assert split(examples(4000), 0.1, seed=1) == (train, validation)
    assert split(examples(4000), 0.1, seed=2)[1] != validation


def test_a_row_stays_on_its_side_when_rows_are_added_or_the_prompt_or_answer_changes():
    _, before = split(examples(100), 0.2, seed=3)
    _, after = split(examples(1000), 0.2, seed=3)
    assert set(before) == {example for example in after if example.line <= 100}
    changed = [
        Example(
            (
                Message("system", "s"),
                Message("user", f" {example.messages[0].content.upper()}"),
                Message("assistant", "no"),
            ),
            example.line,
        )
        for example in examples(100)
    ]
    assert {example.line for example in split(changed, 0.2, seed=3)[1]} == {row.line for row in before}


def test_neither_side_is_empty_if_two_questions_are_there():
    for seed in range(30):
        train, validation = split(examples(3), 0.01, seed)
        assert (len(train), len(validation)) == (2, 1)
        train, validation = split(examples(3), 0.99, seed)
        assert train
        assert validation


def test_without_a_fraction_everything_trains_and_a_whole_fraction_is_refused():
    assert split(examples(3), 0.0, seed=1) == (examples(3), ())
    assert split(examples(1) * 4, 0.5, seed=1) == (examples(1) * 4, ())
    assert split((), 0.5, seed=1) == ((), ())
    with pytest.raises(ValueError, match="validation_fraction"):
        split(examples(3), 1.0, seed=1)


def test_rows_that_tell_one_conversation_turn_by_turn_stay_together():
    rows = [
        chat(10 * talk + turns, *(f"talk {talk} says {n}" for n in range(2 * turns)))
        for talk in range(40)
        for turns in (1, 2, 3)
    ]
    for seed in range(5):
        held_out = sides(rows, seed=seed)
        assert all(held_out[n] == held_out[n + 1] == held_out[n + 2] for n in range(0, 120, 3))
        assert 0 < sum(held_out) < 120


def test_rows_that_share_an_exchange_in_their_middle_stay_together():
    rows = [
        row
        for talk in range(40)
        for row in (
            chat(2 * talk, f"q{talk}", "a", f"r{talk}", "b"),
            chat(2 * talk + 1, f"R{talk} ", "B", f"s{talk}", "c"),
        )
    ]
    for seed in range(5):
        held_out = sides(rows, seed=seed)
        assert held_out[0::2] == held_out[1::2]
        assert 0 < sum(held_out) < 80


def test_answers_and_continuations_of_one_first_question_stay_together():
    rows = [chat(4 * talk + n, f"q{talk}", "a", f"more {n}", "b") for talk in range(30) for n in range(4)]
    held_out = sides(rows)
    assert all(len(set(held_out[4 * talk : 4 * talk + 4])) == 1 for talk in range(30))


@pytest.mark.parametrize("formula", [("Hello!", "How can I help?"), ()])
def test_formulas_that_all_conversations_share_join_none(formula):
    thanks = ("Thanks!", "You are welcome.")
    rows = [chat(n, *formula, f"question {n}", "yes", *thanks) for n in range(400)]
    assert 60 < sum(sides(rows, 0.2)) < 100


def test_a_row_that_another_goes_on_from_stays_with_it_even_under_a_formula():
    rows = [
        chat(
            2 * n + more,
            "Hello!",
            "How can I help?",
            f"question {n}",
            "yes",
            *(["And?", f"{n}"] if more else []),
        )
        for n in range(100)
        for more in (0, 1)
    ]
    held_out = sides(rows, 0.2)
    assert held_out[0::2] == held_out[1::2]
    assert 0 < sum(held_out) < 100


def test_a_conversation_of_too_many_rows_trains():
    rows = [chat(n, "the same question", f"answer {n}") for n in range(60)] + list(examples(40))
    for seed in range(40):
        train, validation = split(rows, 0.1, seed)
        assert Counter(row.messages[0].content for row in train)["the same question"] == 60
        assert validation


def test_one_conversation_alone_is_not_cut():
    rows = [chat(n, *(f"turn {k}" for k in range(2 * n))) for n in range(1, 6)]
    assert split(rows, 0.2, seed=1)[1] == ()


def test_a_long_chain_of_conversations_is_joined_without_recursion():
    rows = [chat(n, f"q{n}", f"a{n}", f"q{n + 1}", f"a{n + 1}") for n in range(20_000)]
    train, validation = split([*rows, *examples(20_000)], 0.1, seed=1)
    assert set(rows) <= set(train)
    assert validation
