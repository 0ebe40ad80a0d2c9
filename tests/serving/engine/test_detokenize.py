from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from neuroweaver.serving.engine.detokenize import Detokenizer, StopText
from trainer.tiny import tiny_llama

TEXT = "Öl wechseln: 5 € «naïve» 汽车 🚗👍🏽!"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(tiny_llama(tmp_path_factory.mktemp("text") / "tiny"))


def test_pieces_add_up_to_the_text_and_no_character_is_cut(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    tokens = tokenizer(TEXT)["input_ids"]
    pieces = [detokenizer.add(token) for token in tokens]
    assert len(tokens) > len(TEXT)  # bytes of one character come one by one
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + detokenizer.end() == TEXT


def test_what_never_became_a_character_is_given_at_the_end(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    tokens = tokenizer("🚗")["input_ids"][:-1]
    assert "".join(detokenizer.add(token) for token in tokens) == ""
    assert "\ufffd" in detokenizer.end()


def test_special_tokens_have_no_text(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    tokens = tokenizer("oil<|im_end|>change")["input_ids"]
    assert "".join(detokenizer.add(token) for token in tokens) + detokenizer.end() == "oilchange"


def shown(stops, pieces):
    stop = StopText(stops)
    text = ""
    for piece in pieces:
        text += stop.add(piece)
        if stop.has_stopped:
            return text
    return text + stop.end()


def test_nothing_of_a_stop_text_is_shown_however_it_is_cut():
    assert shown(["STOP"], ["one S", "T", "OP two"]) == "one "


def test_the_beginning_of_a_stop_text_that_goes_on_differently_is_shown():
    assert shown(["STOP"], ["a ST", "EP b"]) == "a STEP b"


def test_the_earliest_of_several_stop_texts_wins():
    assert shown(["c", "bc", "xyz"], ["abcd"]) == "a"


@given(st.lists(st.text("ab", max_size=4)), st.lists(st.text("ab", min_size=1, max_size=3), max_size=4))
def test_what_is_shown_is_the_text_before_its_first_stop(pieces, stops):
    text = "".join(pieces)
    # The piece that completes a stop text decides; text that came with it counts as well.
    ends = [text.find(stop) for stop in stops if stop in text]
    found = shown(stops, pieces)
    assert text.startswith(found)
    assert not any(stop in found for stop in stops)
    if not ends:
        assert found == text
    else:
        assert len(found) >= min(ends)
