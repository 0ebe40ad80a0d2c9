from __future__ import annotations

import re
from collections import Counter

import pytest

from neuroweaver.trainer.data.specialization import (
    EvaluationPrompt,
    load_specializations,
)
from trainer.automotive import training_pairs

IDS = ("service_advisor", "sales_assistant", "parts_specialist", "finance_advisor")

# Two questions about the same subject share words ("lease", "mileage", "car") without asking the same thing:
# such pairs reach about a third of their content words here. A question with one or two words changed keeps
# well over half. Whole answers share less, so a copied sentence already shows at a lower bound.
QUESTION_BOUND = 0.5
ANSWER_BOUND = 0.35

FUNCTION_WORDS = """
    a an and any are as at be been but by can could did do does don for from get had has have how i if in is
    it its just me my no not of on one or our should so than that the then there they this to up was we what
    when where which who why will with would you your
"""
STOP_WORDS = frozenset(FUNCTION_WORDS.split())
MONEY = re.compile(
    r"[$€£¥]|\b(usd|eur|gbp|chf)\b"
    r"|\b(\d[\d.,]*|hundred|thousand|fifty|twenty|ten)\s+(dollars?|euros?|pounds?|francs?|cents?|bucks?)\b",
    re.IGNORECASE,
)
MARKDOWN = re.compile(r"[*#`|]|__|\n|^\s*(-|\d+\.)\s")


def content_words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", text.lower())) - STOP_WORDS


def similarity(left: str, right: str) -> float:
    """Jaccard similarity of the content words: 1 for the same set, 0 for disjoint ones."""
    a, b = content_words(left), content_words(right)
    return len(a & b) / len(a | b)


def normalised(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def evaluation_prompts() -> list[EvaluationPrompt]:
    return [prompt for special in load_specializations().values() for prompt in special.evaluation_prompts]


def questions() -> list[str]:
    return [pair.question for pair in training_pairs()] + [prompt.prompt for prompt in evaluation_prompts()]


def answers() -> list[str]:
    return [pair.answer for pair in training_pairs()] + [prompt.reference for prompt in evaluation_prompts()]


def test_the_four_specialisations_are_there_in_order():
    assert tuple(load_specializations()) == IDS
    assert all(special.id == key for key, special in load_specializations().items())


def test_the_mapping_cannot_be_changed_by_a_caller():
    with pytest.raises(TypeError):
        load_specializations()["service_advisor"] = None  # type: ignore[index]


@pytest.mark.parametrize("name", IDS)
def test_a_system_prompt_has_two_to_four_sentences_and_states_the_length_of_answers(name):
    prompt = load_specializations()[name].system_prompt
    assert 2 <= len(re.findall(r"\.(?:\s|$)", prompt)) <= 4
    assert "40 to 80 words" in prompt
    assert "\n" not in prompt


@pytest.mark.parametrize("name", IDS)
def test_a_rubric_has_four_or_five_criteria_whose_weights_sum_to_one(name):
    rubric = load_specializations()[name].rubric
    assert 4 <= len(rubric) <= 5
    assert sum(criterion.weight for criterion in rubric) == pytest.approx(1.0)
    assert all(criterion.weight > 0 and criterion.description for criterion in rubric)
    assert len({criterion.name for criterion in rubric}) == len(rubric)


@pytest.mark.parametrize("name", IDS)
def test_a_specialisation_has_at_least_twenty_evaluation_prompts_of_its_own(name):
    prompts = load_specializations()[name].evaluation_prompts
    assert len(prompts) >= 20
    assert all(prompt.id.startswith(f"{name}-eval-") for prompt in prompts)


def test_evaluation_ids_are_unique():
    ids = [prompt.id for prompt in evaluation_prompts()]
    assert len(set(ids)) == len(ids)


def test_training_pairs_cover_every_specialisation_evenly():
    counts = Counter(pair.specialization for pair in training_pairs())
    assert counts == dict.fromkeys(IDS, 60)


def test_every_answer_has_forty_to_eighty_words():
    lengths = {answer: len(answer.split()) for answer in answers()}
    assert not {answer: length for answer, length in lengths.items() if not 40 <= length <= 80}


def test_answers_are_plain_text_that_ends_as_a_sentence():
    assert not [answer for answer in answers() if MARKDOWN.search(answer) or answer[-1] not in ".?!"]


def test_no_text_names_an_amount_of_money():
    assert not [text for text in questions() + answers() if MONEY.search(text)]


@pytest.mark.parametrize("text", ["It costs 300 euros.", "About €40.", "a hundred dollars"])
def test_the_search_for_money_finds_an_amount(text):
    assert MONEY.search(text)


def test_no_question_and_no_answer_occurs_twice():
    for texts in (questions(), answers()):
        repeated = [text for text, count in Counter(map(normalised, texts)).items() if count > 1]
        assert not repeated


def test_no_evaluation_prompt_rewords_a_training_question():
    close = [
        (prompt.prompt, pair.question)
        for prompt in evaluation_prompts()
        for pair in training_pairs()
        if similarity(prompt.prompt, pair.question) >= QUESTION_BOUND
    ]
    assert not close


def test_no_reference_answer_is_given_away_by_a_training_answer():
    close = [
        (prompt.reference, pair.answer)
        for prompt in evaluation_prompts()
        for pair in training_pairs()
        if similarity(prompt.reference, pair.answer) >= ANSWER_BOUND
    ]
    assert not close


@pytest.mark.parametrize(
    ("original", "reworded"),
    [
        (
            "My steering wheel shakes at about a hundred kilometres an hour. Why?",
            "Why does my steering wheel shake at about a hundred kilometres an hour?",
        ),
        ("What is a balloon payment?", "Can you say what a balloon payment is?"),
        (
            "Should I choose a fixed or a variable interest rate?",
            "Is it better to choose a variable or fixed interest rate?",
        ),
    ],
)
def test_the_bound_would_catch_a_reworded_question(original, reworded):
    assert similarity(original, reworded) >= QUESTION_BOUND


def test_the_bound_would_catch_an_answer_half_of_which_is_copied():
    reference = evaluation_prompts()[0].reference.split()
    other = training_pairs()[-1].answer.split()
    half_copied = " ".join([*reference[: len(reference) // 2], *other[len(other) // 2 :]])
    assert similarity(" ".join(reference), half_copied) >= ANSWER_BOUND
