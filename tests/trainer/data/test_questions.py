from __future__ import annotations

import pytest

from neuroweaver.trainer.data.questions import choose, questions_of, without_system
from neuroweaver.trainer.data.rows import Example, Message
from neuroweaver.trainer.data.specialization import system_prompts
from neuroweaver.trainer.data.turns import messages_of

SHARED = system_prompts()["service_advisor"]


def example(
    *turns: tuple[str, str] | tuple[str, str, bool], line: int = 1, specialization: str = ""
) -> Example:
    return Example(tuple(Message(*turn) for turn in turns), line, "", specialization)


def only(*turns):
    (question,) = questions_of([example(*turns)])
    return question


def test_a_single_question_is_read_by_the_judge_as_it_is():
    question = only(("system", SHARED), ("user", "Which oil?"), ("assistant", "0W-20."))
    assert (question.text, question.reference) == ("Which oil?", "0W-20.")
    assert [turn["role"] for turn in question.messages] == ["system", "user"]


def test_the_judge_reads_the_last_question_and_the_turns_before_it():
    question = only(
        ("system", "Answer in verse."),
        ("user", "What is the lamp?"),
        ("assistant", "Oil."),
        ("user", "How often?"),
        ("assistant", "Yearly."),
    )
    assert question.text == (
        "How often?\n\nSaid before:\n\nInstruction: Answer in verse.\n\nUser: What is the lamp?\n\nAssistant: Oil."
    )
    assert (len(question.messages), question.reference) == (4, "Yearly.")


def test_turns_of_the_assistant_in_a_row_are_one_answer_and_never_the_question():
    question = only(("user", "Which oil?"), ("assistant", "Let me see."), ("assistant", "0W-20."))
    assert (question.text, question.reference) == ("Which oil?", "Let me see.\n\n0W-20.")
    assert question.messages == [{"role": "user", "content": "Which oil?"}]


def test_an_answer_that_is_not_trained_is_no_reference():
    question = only(
        ("user", "Which oil?"), ("assistant", "0W-20."), ("user", "Sure?"), ("assistant", "No idea.", False)
    )
    assert (question.text, question.reference) == ("Which oil?", "0W-20.")
    question = only(("user", "Which oil?"), ("assistant", "Any.", False), ("assistant", "0W-20."))
    assert question.reference == "0W-20."


def test_a_conversation_that_waits_for_an_answer_is_asked_up_to_its_last_answer():
    question = only(("user", "Which oil?"), ("assistant", "0W-20."), ("user", "Thanks."))
    assert (question.text, question.reference) == ("Which oil?", "0W-20.")


@pytest.mark.parametrize(
    "unasked",
    [
        Example((), 1, "plain text"),
        example(("assistant", "Hello!"), ("user", "Which oil?")),
        example(("user", "Which oil?"), ("assistant", "Any.", False)),
    ],
)
def test_what_asks_nothing_gives_no_question(unasked):
    assert list(questions_of([unasked])) == []


def test_a_reward_model_reads_a_rows_own_instruction_but_not_that_of_all():
    turns = [("user", "q"), ("assistant", "a")]
    own, shared = (messages_of(example(("system", text), *turns)) for text in ("Answer in verse.", SHARED))
    assert [turn["content"] for turn in without_system(own)] == ["Answer in verse.", "q", "a"]
    assert [turn["content"] for turn in without_system(shared)] == ["q", "a"]


def test_questions_are_drawn_by_the_seed_from_the_whole_file_and_the_jobs_own_come_first():
    rows = [
        example(
            ("user", f"q{n}"), ("assistant", "a"), line=n, specialization="parts" if n % 10 == 9 else "sales"
        )
        for n in range(200)
    ]
    drawn = choose(rows, "sales", 40, seed=1)
    lines = [int(question.id.removeprefix("line-")) for question in drawn]
    assert choose(rows, "sales", 40, seed=1) == drawn
    assert choose(rows, "sales", 40, seed=2) != drawn
    assert {question.specialization for question in drawn} == {"sales"}
    # Of 40 drawn from 200 in order, all quarters of the file have some.
    assert {line // 50 for line in lines} == {0, 1, 2, 3}
    parts = choose(rows, "parts", 40, seed=1)
    assert [question.specialization for question in parts] == ["parts"] * 20 + ["sales"] * 20
