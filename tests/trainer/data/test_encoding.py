from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base_models.families import CHAT, CHATML, FAMILIES, NAMED, byte_level, segments
from neuroweaver.base_models.chat_template import chat_template
from neuroweaver.base_models.rendering import TemplateRefuses
from neuroweaver.serving import prompts
from neuroweaver.trainer.data.encoding import IGNORED, encode

TURNS = [
    {"role": "system", "content": "service"},
    {"role": "user", "content": "question one"},
    {"role": "assistant", "content": "replace the pads"},
    {"role": "user", "content": "question two"},
    {"role": "assistant", "content": "\nan oil change\n"},
    {"role": "user", "content": "never answered"},
]
NO_END = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
THOUGHT = "<think>\nold pads\n</think>\n\nReplace it"


def each_family():
    return pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def targets(tokenizer, chat):
    return tokenizer.decode([label for label in chat.labels if label != IGNORED])


def asked(*contents):
    return [
        {"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)
    ]


@each_family()
def test_every_answer_is_trained_in_the_context_that_the_template_gives_it(family):
    chats = encode(family.tokenizer(), CHAT)
    assert [chat.segments for chat in chats] == [segments(chat) for chat in family.chats]


@each_family()
def test_the_ids_are_those_of_the_whole_text(family):
    tokenizer = family.tokenizer()
    for chat in encode(tokenizer, CHAT):
        text = "".join(text for text, _ in chat.segments)
        assert chat.input_ids == tokenizer(text, add_special_tokens=False)["input_ids"]


@each_family()
def test_a_server_is_asked_with_the_ids_before_a_trained_answer(family):
    tokenizer = family.tokenizer()
    chats = encode(tokenizer, CHAT)
    for answer, chat in ((2, chats[0]), (4, chats[-1])):
        prompt = prompts.token_ids(tokenizer, list(CHAT[:answer]), max_tokens=1000)
        assert chat.input_ids[: len(prompt)] == prompt
        assert chat.labels[len(prompt) - 1] == IGNORED
        assert chat.labels[len(prompt)] == chat.input_ids[len(prompt)]


@pytest.mark.parametrize(
    ("family", "trained"),
    [
        ("Qwen 3", "<think>\nold pads\n</think>\n\nReplace it<|im_end|>"),
        ("DeepSeek-R1 distilled", f"old pads\n</think>\n\nReplace it{NAMED['DeepSeek-R1 distilled'].eos}"),
    ],
)
def test_a_thought_of_the_data_is_trained_where_it_is_generated(family, trained):
    (chat,) = encode(NAMED[family].tokenizer(), asked("check the oil", THOUGHT))
    assert chat.segments[-1] == (trained, True)


def test_an_empty_thought_is_the_same_said_or_not():
    tokenizer = NAMED["DeepSeek-R1 distilled"].tokenizer()
    (plain,) = encode(tokenizer, asked("check the oil", "Replace it"))
    for empty in ("</think>\n\nReplace it", "<think>\n\n</think>\n\nReplace it"):
        assert encode(tokenizer, asked("check the oil", empty)) == [plain]


@pytest.mark.parametrize(
    ("opening", "kept", "trained"),
    [
        ("<think>", "", "\n\n</think>\n\nReplace it<|im_end|>"),
        ("<think>\n\n</think>\n\n", "", "Replace it<|im_end|>"),
        ("<think>\n", "<think>\n\n</think>\n\n", "\n</think>\n\nReplace it<|im_end|>"),
        ("<think>\n", "<think></think>", "</think>Replace it<|im_end|>"),
    ],
)
def test_the_thought_of_a_prompt_is_closed_before_the_answer(opening, kept, trained):
    template = CHATML.replace("assistant\n{%", f"assistant\n{opening}{{%").replace(
        "\n{{ message['content'] }}",
        f"\n{{% if message['role'] == 'assistant' %}}{kept}{{% endif %}}{{{{ message['content'] }}}}",
    )
    (chat,) = encode(
        byte_level(template, added=("<think>", "</think>")), asked("check the oil", "Replace it")
    )
    assert chat.segments[-1] == (trained, True)
    assert chat.segments[0][0].endswith(f"assistant\n{opening}")


@given(
    st.sampled_from(["ChatML", "Qwen 3", "Zephyr", "Phi-3", "Llama 3", "DeepSeek-R1 distilled", "no end"]),
    st.lists(st.text("aR \n<é", min_size=1, max_size=6).filter(str.strip), min_size=4, max_size=4),
)
@settings(deadline=None, max_examples=80, derandomize=True)
def test_whatever_is_said_an_answer_is_trained_behind_its_own_prompt(name, contents):
    tokenizer = tokenizer_of(name)
    prompts_of_answers = [chat_template(tokenizer).prompt_ids(asked(*contents)[:place]) for place in (1, 3)]
    chats = encode(tokenizer, asked(*contents))
    begun = [
        chat.input_ids[:place]
        for chat in chats
        for place in range(1, len(chat.labels))
        if chat.labels[place] != IGNORED == chat.labels[place - 1]
    ]
    assert begun == prompts_of_answers


@cache
def tokenizer_of(name):
    return byte_level(NO_END) if name == "no end" else NAMED[name].tokenizer()


def test_labels_are_the_assistants_turns_with_their_ends_and_nothing_else():
    tokenizer = byte_level(CHATML)
    (chat,) = encode(tokenizer, TURNS)
    assert targets(tokenizer, chat) == "replace the pads<|im_end|>\nan oil change\n<|im_end|>"
    assert all(label in (IGNORED, token) for token, label in zip(chat.input_ids, chat.labels, strict=True))


@pytest.mark.parametrize("family", ["ChatML", "Qwen 3"])
def test_a_turn_that_is_not_to_be_trained_is_context_alone(family):
    tokenizer = NAMED[family].tokenizer()
    (chat,) = encode(tokenizer, [*CHAT[:2], CHAT[2] | {"is_trained": False}, *CHAT[3:]])
    assert [text for text, is_trained in chat.segments if is_trained] == [
        encode(tokenizer, CHAT)[-1].segments[-1][0]
    ]
    assert chat.input_ids == encode(tokenizer, CHAT)[-1].input_ids


def test_the_chat_ends_with_its_last_target():
    tokenizer = byte_level(CHATML)
    (chat,) = encode(tokenizer, TURNS)
    assert chat.labels[-1] == tokenizer.eos_token_id
    assert "never answered" not in tokenizer.decode(chat.input_ids)


def test_a_long_chat_keeps_its_start():
    (whole,) = encode(byte_level(CHATML), TURNS)
    cut = whole.cut(20)
    assert cut.is_truncated
    assert not whole.is_truncated
    assert (cut.input_ids, cut.labels) == (whole.input_ids[:20], whole.labels[:20])
    assert whole.cut(len(whole.input_ids)) is whole


@pytest.mark.parametrize("family", ["ChatML", "SmolLM2", "Llama 3", "Qwen 3"])
def test_a_text_without_a_question_is_all_target(family):
    tokenizer = NAMED[family].tokenizer()
    (chat,) = encode(tokenizer, [{"role": "assistant", "content": "an oil change"}])
    end = chat_template(tokenizer).end_text
    assert chat.segments[-1] == (f"an oil change{end}", True)
    assert ("You are helpful." in chat.segments[0][0]) is (family == "SmolLM2")


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        ("{{ messages | length }}" + CHATML, TURNS[:3], "differently"),
        (NAMED["Gemma"].template, asked("a", "b", "c")[::2] + asked("a", "b"), "must alternate"),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", TURNS[:3], "leaves out"),
        ("{{ messages[0]['content'] | upper }}", TURNS[2:3], "changes"),
    ],
)  # fmt: skip
def test_a_template_in_which_no_answer_has_a_beginning_is_refused(template, messages, reason):
    with pytest.raises(TemplateRefuses, match=reason):
        encode(byte_level(template), messages)


def test_an_answer_ends_also_by_a_template_that_writes_no_end():
    tokenizer = byte_level(NO_END)
    (chat,) = encode(tokenizer, TURNS)
    # The first answer stands in the context of the second one, as in a prompt.
    assert targets(tokenizer, chat) == "replace the pads\n\nan oil change\n\n<|im_end|>"
    assert chat.segments[-1] == ("<|im_end|>", True)
    prompt = chat_template(tokenizer).prompt_ids(TURNS[:4])
    assert chat.input_ids[: len(prompt)] == prompt


def test_a_token_over_the_beginning_of_an_answer_begins_a_new_sequence_or_is_parted():
    tokenizer = byte_level(NO_END.replace("assistant: {%", "assistant:{%"))
    for chat in encode(tokenizer, TURNS):
        prompt = next(ids for ids in (
            chat_template(tokenizer).prompt_ids(TURNS[:count]) for count in (2, 4)
        ) if chat.labels[len(ids)] != IGNORED)  # fmt: skip
        assert chat.input_ids[: len(prompt)] == prompt


def test_tokens_that_a_row_quotes_end_no_turn_and_are_trained_as_text():
    tokenizer = byte_level(CHATML)
    said = "done<|im_end|>\n<|im_start|>user\nmore"
    (chat,) = encode(tokenizer, asked(said, said))
    end, start = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    assert (chat.input_ids.count(end), chat.input_ids.count(start)) == (2, 2)
    assert chat.labels.count(end) == 1
    assert targets(tokenizer, chat) == f"{said}<|im_end|>"
    assert chat.segments[-1] == (f"{said}<|im_end|>", True)


def test_a_chat_without_an_answer_gives_nothing():
    assert encode(byte_level(CHATML), TURNS[:2]) == []


@pytest.mark.parametrize(("family", "text"), [("ChatML", "a"), ("SmolLM2", "You are"), ("Llama 3", "start")])
def test_a_text_that_the_template_writes_too_is_trained_whole(family, text):
    tokenizer = NAMED[family].tokenizer()
    (chat,) = encode(tokenizer, [{"role": "assistant", "content": text}])
    assert targets(tokenizer, chat).startswith(text)
    assert chat.segments[-1][0].startswith(text)
    assert text in chat.segments[0][0]
