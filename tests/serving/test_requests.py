from __future__ import annotations

import pytest

from neuroweaver.serving.requests import ApiError, chat, completion

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "m", "prompt": "hi"}


def refused(read, body):
    with pytest.raises(ApiError) as raised:
        read(body)
    return raised.value


def test_what_is_not_given_has_openais_defaults():
    asked = chat(CHAT)
    assert (asked.temperature, asked.top_p, asked.max_tokens) == (1.0, 1.0, None)
    assert (asked.stops, asked.seed, asked.streams) == ((), None, False)
    assert completion(COMPLETION).max_tokens == 16


def test_null_is_as_good_as_absent():
    assert chat({**CHAT, "temperature": None, "stop": None, "tools": None, "n": None}) == chat(CHAT)


def test_both_names_of_the_bound_on_tokens_are_known():
    assert chat({**CHAT, "max_tokens": 5}).max_tokens == 5
    assert chat({**CHAT, "max_completion_tokens": 6}).max_tokens == 6
    assert refused(chat, {**CHAT, "max_tokens": 5, "max_completion_tokens": 6}).parameter == "max_tokens"


def test_text_parts_of_a_message_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = chat({"model": "m", "messages": [{"role": "developer", "content": parts}]})
    assert asked.prompt == [{"role": "system", "content": "ab"}]


@pytest.mark.parametrize("prompt", ["hi", ["hi"]])
def test_a_prompt_may_be_a_text(prompt):
    assert completion({"model": "m", "prompt": prompt}).prompt == "hi"


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2]]])
def test_a_prompt_may_be_token_ids(prompt):
    assert completion({"model": "m", "prompt": prompt}).prompt == [1, 2]


def test_what_changes_nothing_is_let_through():
    chat({**CHAT, "n": 1, "presence_penalty": 0, "logprobs": False, "response_format": {"type": "text"}})
    chat({**CHAT, "tools": [], "tool_choice": "auto", "user": "u", "metadata": {"a": "b"}, "store": True})


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 0}, "logprobs"),
        ({"top_logprobs": False}, "top_logprobs"),
        ({"presence_penalty": False}, "presence_penalty"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ],
)
def test_what_is_not_supported_is_named(changes, parameter):
    error = refused(chat, {**CHAT, **changes})
    assert (error.status, error.parameter, error.code) == (400, parameter, "unsupported_value")
    assert parameter in error.message


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"seed": 1 << 64}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ],
)
def test_what_is_wrong_is_named(changes, parameter):
    error = refused(chat, {**CHAT, **changes})
    assert (error.status, error.parameter, error.code) == (400, parameter, "invalid_value")


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("", "invalid_value"),
        ([], "invalid_value"),
        ([1.5], "invalid_value"),
        ([-1], "invalid_value"),
        ([True], "invalid_value"),
        ([[]], "invalid_value"),
        (["a", "b"], "unsupported_value"),
        ([[1], [2]], "unsupported_value"),
    ],
)
def test_a_wrong_prompt_is_named(prompt, code):
    error = refused(completion, {"model": "m", "prompt": prompt})
    assert (error.parameter, error.code) == ("prompt", code)


@pytest.mark.parametrize(
    "changes",
    [
        {"best_of": 2},
        {"best_of": True},
        {"echo": True},
        {"echo": 0},
        {"suffix": "x"},
        {"logprobs": 1},
        {"logprobs": 0},
    ],
)
def test_what_completions_do_not_support_is_named(changes):
    assert refused(completion, {**COMPLETION, **changes}).parameter == next(iter(changes))


def test_an_unknown_parameter_is_named():
    error = refused(chat, {**CHAT, "top_k": 5})
    assert (error.parameter, error.code) == ("top_k", "unknown_parameter")


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_parameter_is_named(missing):
    error = refused(chat, {key: value for key, value in CHAT.items() if key != missing})
    assert (error.parameter, error.code) == (missing, "missing_required_parameter")


@pytest.mark.parametrize("body", [None, [], "hi", 5])
def test_a_body_that_is_no_object_is_refused(body):
    assert refused(chat, body).status == 400
