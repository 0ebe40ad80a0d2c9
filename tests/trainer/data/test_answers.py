"""Chats of many turns, which are not rendered anew for each."""

from __future__ import annotations

import pytest

from base_models.families import CHATML, FAMILIES, NAMED, byte_level
from neuroweaver.base_models.chat_template import ChatTemplate
from neuroweaver.base_models.rendering import TemplateRefuses
from neuroweaver.trainer.data import answers
from neuroweaver.trainer.data.encoding import encode

REWRITING = {"Qwen 3", "Mistral Nemo", "DeepSeek-R1 distilled"}
ASKED = {"role": "user", "content": "check"}
SAID = ("Replace it", "\nYes \n", "an oil<|im_end|> change", "a", "<b>[c]</b>")


def chat(count: int) -> list[dict[str, object]]:
    asked = [{"role": "system", "content": "Be brief."}]
    for number in range(count):
        asked.append({"role": "user", "content": f"check {SAID[number % 4]}"})
        asked.append({"role": "assistant", "content": SAID[number % 5], "is_trained": number % 3 != 1})
    return asked


@pytest.fixture
def renders(monkeypatch) -> list[int]:
    """The lengths of the chats that were rendered."""
    lengths: list[int] = []
    render = ChatTemplate.render

    def counting(self, quoted, opens_turn):
        lengths.append(len(quoted))
        return render(self, quoted, opens_turn)

    monkeypatch.setattr(ChatTemplate, "render", counting)
    return lengths


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_many_answers_are_those_that_each_context_would_give(family, monkeypatch, renders):
    tokenizer, messages = family.tokenizer(), chat(24)
    one_by_one = encode(tokenizer, messages)
    took = len(renders)
    monkeypatch.setattr(answers, "_MANY", 1)
    at_once = encode(tokenizer, messages)
    assert at_once == one_by_one
    assert [one.segments for one in at_once] == [one.segments for one in one_by_one]
    if family.name not in REWRITING:
        assert len(at_once) == 1
        assert len(renders) - took < took


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_space_around_each_answer_stays_with_it(family, monkeypatch):
    said = [" Yes"] * 20
    # Of a sample at even distances, these are none.
    said[7], said[11] = "   Yes", "\n Yes"
    messages = [turn for text in said for turn in (ASKED, {"role": "assistant", "content": text})]
    tokenizer = family.tokenizer()
    one_by_one = encode(tokenizer, messages)
    monkeypatch.setattr(answers, "_MANY", 19)
    at_once = encode(tokenizer, messages)
    assert [one.segments for one in at_once] == [one.segments for one in one_by_one]
    assert at_once == one_by_one


def test_five_thousand_turns_are_rendered_a_few_times(renders):
    messages = chat(2500)
    (encoded,) = encode(byte_level(CHATML), messages)
    assert sum(text.count("check") for text, _ in encoded.segments) == 2500
    assert sum(is_trained for _, is_trained in encoded.segments) == 1667
    assert len(renders) < 60


def test_a_kind_of_turn_that_is_written_otherwise_is_found_among_many(monkeypatch):
    """As by templates that write thoughts for the last answer alone."""
    monkeypatch.setattr(answers, "_MANY", 1)
    monkeypatch.setattr(answers, "_MAX_ANEW", 19)
    template = CHATML.replace(
        "{{ message['content'] }}",
        "{{ message['content'] if loop.last else message['content'].replace('<think>hm</think>', '') }}",
    )
    messages = chat(30)
    assert len(encode(byte_level(template), messages)) == 1
    messages[32] = {"role": "assistant", "content": "<think>hm</think>Yes"}
    with pytest.raises(TemplateRefuses, match=r"20 answers of one chat .* at most 19 answers"):
        encode(byte_level(template), messages)
    monkeypatch.setattr(answers, "_MAX_ANEW", 20)
    assert len(encode(byte_level(template), messages)) == 2


def test_a_template_that_rewrites_every_turn_refuses_more_than_can_be_encoded(monkeypatch):
    monkeypatch.setattr(answers, "_MANY", 2)
    monkeypatch.setattr(answers, "_MAX_ANEW", 8)
    with pytest.raises(TemplateRefuses, match=r"9 answers of one chat .* at most 8 answers"):
        encode(NAMED["Qwen 3"].tokenizer(), chat(13))
