"""Fields beside a row's words: each is used, leaves the row out, refuses it, or is remarked on by name."""

from __future__ import annotations

import json

import pytest

from neuroweaver.trainer.data import dataset
from neuroweaver.trainer.data.dataset import DatasetEmptyError, Severity
from neuroweaver.trainer.data.marks import chat_markup

PROMPTS = {"service_advisor": "You advise on service."}
ASKED = {"role": "user", "content": "Which oil?"}
ANSWERED = {"role": "assistant", "content": "0W-20."}
CHAT = {"messages": [ASKED, ANSWERED]}
SPOKEN = {"conversations": [{"from": "human", "value": "Which oil?"}, {"from": "gpt", "value": "0W-20."}]}
PAIR = {"prompt": "Which oil?", "completion": "0W-20."}


def read(tmp_path, *rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dataset.read(path, **options)


def chats(data):
    return [[(turn.role, turn.content) for turn in example.messages] for example in data.examples]


def findings(data):
    return [(found.severity, found.column_or_field, found.reason) for found in data.inspection.findings]


# --- used


@pytest.mark.parametrize("passage", ["context", "passage", "input"])
@pytest.mark.parametrize(
    ("asks", "answers"), [("question", "answer"), ("instruction", "response"), ("prompt", "completion")]
)
def test_a_passage_follows_its_question_after_a_blank_line(tmp_path, asks, answers, passage):
    data = read(tmp_path, {asks: "Who came first?", passage: "Ann came, then Bob.", answers: "Ann."})
    assert chats(data) == [[("user", "Who came first?\n\nAnn came, then Bob."), ("assistant", "Ann.")]]
    assert findings(data) == []


def test_an_input_is_a_question_where_nothing_else_asks_and_an_empty_passage_adds_nothing(tmp_path):
    data = read(tmp_path, {"input": "Who?", "context": "Ann came.", "output": "Ann."}, PAIR | {"context": ""})
    assert [chat[0][1] for chat in chats(data)] == ["Who?\n\nAnn came.", "Which oil?"]


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("row", [CHAT, SPOKEN, PAIR])
def test_a_rows_own_system_prompt_comes_first_in_every_layout(tmp_path, row, name):
    data = read(
        tmp_path, {name: "Answer in verse.", **row}, system_prompts=PROMPTS, specialization="service_advisor"
    )
    assert chats(data)[0][:2] == [("system", "Answer in verse."), ("user", "Which oil?")]
    assert findings(data) == []


def test_two_different_system_prompts_in_a_row_are_refused_and_the_same_twice_is_one(tmp_path):
    chat = {"messages": [{"role": "system", "content": "Be brief."}, ASKED, ANSWERED]}
    data = read(
        tmp_path,
        {"system": "Be long.", **chat},
        {"system": "Be brief.", **chat},
        {"system": "a", "system_prompt": "b", **PAIR},
    )
    assert findings(data) == [
        (Severity.ERROR, "system", "differs from messages[0]; give one system prompt a row"),
        (Severity.ERROR, "system", "differs from system_prompt; give one system prompt a row"),
    ]
    assert [role for role, _ in chats(data)[0]] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    "mark",
    [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"loss": False}, {"weight": "0"}],
)
def test_a_marked_turn_is_context_alone(tmp_path, mark):
    bad = {"role": "assistant", "content": "Any.", **mark}
    data = read(tmp_path, {"messages": [ASKED, bad, {"role": "user", "content": "Sure?"}, ANSWERED]})
    assert [turn.is_trained for turn in data.examples[0].messages] == [True, False, True, True]
    assert findings(data) == []


def test_a_weight_of_one_changes_nothing_and_of_zero_neither_on_what_others_say(tmp_path):
    turns = [ASKED | {"weight": 0}, ANSWERED | {"weight": 1, "train": True}]
    assert read(tmp_path, {"messages": turns, "weight": 1.0}).examples == read(tmp_path, CHAT).examples


# --- left out


@pytest.mark.parametrize(
    ("mark", "name"),
    [
        ({"label": False}, "label"),
        ({"label": "False"}, "label"),
        ({"kto_tag": False}, "kto_tag"),
        ({"weight": 0}, "weight"),
        ({"train": False}, "train"),
    ],
)
@pytest.mark.parametrize("row", [CHAT, SPOKEN, PAIR, {"text": "Any oil."}])
def test_a_row_marked_as_bad_or_not_to_be_trained_is_left_out_with_a_warning(tmp_path, row, mark, name):
    data = read(tmp_path, row | mark, PAIR | {"prompt": "Which tyre?", "label": True})
    assert [chat[0][1] for chat in chats(data)] == ["Which tyre?"]
    ((severity, field, reason),) = findings(data)
    assert (severity, field) == (Severity.WARNING, name)
    assert reason.startswith(f"left out: {name} is ")
    assert (data.inspection.left_out, data.inspection.errors) == (1, 0)
    dataset.require(data)


def test_a_chat_of_which_no_answer_is_to_be_learnt_is_left_out(tmp_path):
    data = read(tmp_path, {"messages": [ASKED, ANSWERED | {"weight": 0}]}, PAIR)
    assert (data.inspection.left_out, len(data.examples)) == (1, 1)


def test_a_file_that_leaves_out_every_row_is_refused_with_the_cause(tmp_path):
    data = read(tmp_path, PAIR | {"label": False})
    with pytest.raises(DatasetEmptyError, match=r"no row is left: rows\.jsonl:1: label: left out"):
        dataset.require(data)


def test_a_csv_column_of_labels_leaves_rows_out(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,label\nq,bad,False\nr,good,True\n")
    assert [example.messages[1].content for example in dataset.read(path).examples] == ["good"]


# --- refused


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (PAIR | {"label": 0}, "label"),
        (PAIR | {"label": 1}, "label"),
        (PAIR | {"weight": 0.5}, "weight"),
        (PAIR | {"train": "perhaps"}, "train"),
        (CHAT | {"context": "A passage."}, "context"),
        (SPOKEN | {"context": ["A passage."]}, "context"),
        (PAIR | {"context": ["A passage."]}, "context"),
        (PAIR | {"history": [["Hi", "Hello"]]}, "history"),
        (CHAT | {"tools": [{"type": "function"}]}, "tools"),
        (SPOKEN | {"tools": '[{"name": "price"}]'}, "tools"),
        (CHAT | {"functions": [{"name": "price"}]}, "functions"),
        (CHAT | {"images": ["a.png"]}, "images"),
        ({"system": "Be brief.", "text": "plain"}, "system"),
        ({"messages": [ASKED, ANSWERED | {"tool_calls": [{"id": "1"}]}]}, "messages[1].tool_calls"),
        (
            {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [1]}]},
            "messages[1].tool_calls",
        ),
        ({"messages": [ASKED, ANSWERED | {"function_call": {"name": "f"}}]}, "messages[1].function_call"),
        ({"messages": [ASKED, ANSWERED | {"weight": 0.5}]}, "messages[1].weight"),
        (
            {"messages": [ASKED, ANSWERED | {"train_detail": [{"begin_offset": 0}]}]},
            "messages[1].train_detail",
        ),
        (PAIR | {"completion": None, "chosen": "a", "rejected": "b"}, "completion"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "chosen"),
        ({"question": "q", "chosen": "a", "rejected": "b"}, "chosen"),
        ({"messages": [ASKED], "chosen": ANSWERED, "rejected": ANSWERED}, "chosen"),
    ],
)
def test_a_field_whose_meaning_would_be_lost_refuses_the_row_by_name(tmp_path, row, name):
    data = read(tmp_path, row)
    ((severity, field, _),) = findings(data)
    assert (severity, field) == (Severity.ERROR, name)
    assert data.examples == ()


@pytest.mark.parametrize("nothing", [None, "", [], "[]", {}])
def test_a_column_that_is_empty_in_a_row_says_nothing(tmp_path, nothing):
    names = ("tools", "history", "label", "weight", "context", "system", "category")
    assert (
        findings(read(tmp_path, CHAT | dict.fromkeys(names, nothing if nothing in (None, "") else None)))
        == []
    )
    turn = ANSWERED | {"tool_calls": nothing, "weight": None, "name": nothing}
    assert findings(read(tmp_path, {"messages": [ASKED, turn], "tools": nothing, "images": nothing})) == []


def test_an_answer_under_another_layouts_name_is_pointed_at(tmp_path):
    data = read(tmp_path, {"question": "q", "response": "a"})
    assert findings(data) == [
        (Severity.ERROR, "answer", "missing; a row with 'question' needs answer; rename 'response'")
    ]


# --- remarked on


def test_what_is_not_used_is_remarked_on_once_for_all_rows_whatever_else_is_found(tmp_path):
    rows = [PAIR | {"prompt": f"q{number}", "category": "oil"} for number in range(3)]
    repeated = [PAIR] * 200
    data = read(tmp_path, *rows, *repeated, PAIR | {"label": "open_qa", "prompt": "r"})
    assert data.inspection.remarks == data.inspection.findings[-2:]
    assert [(found.line, found.column_or_field, found.reason) for found in data.inspection.remarks] == [
        (1, "category", "is not used (in 3 rows)"),
        (204, "label", "is not used"),
    ]


def test_turns_are_remarked_on_by_field(tmp_path):
    turns = [ASKED | {"name": "Ann", "weight": 1}, ANSWERED | {"reasoning_content": "Thin oil."}]
    data = read(tmp_path, {"messages": turns}, {"messages": [*turns[:1], ANSWERED | {"content": "5W"}]})
    assert len(data.examples) == 2
    assert findings(data) == [
        (Severity.WARNING, "messages[].name", "is not used (in 2 rows)"),
        (
            Severity.WARNING,
            "messages[].weight",
            "is not used: only an assistant's turns are trained on (in 2 rows)",
        ),
        (
            Severity.WARNING,
            "messages[].reasoning_content",
            "is not used: the answer is learnt without its reasoning",
        ),
    ]


def test_the_number_of_different_remarks_is_bounded(tmp_path):
    data = read(tmp_path, *(PAIR | {"prompt": f"q{n}", f"field {n}": 1} for n in range(80)))
    assert len(data.inspection.remarks) == dataset.MAX_REMARKS


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("<s>[INST] Which oil? [/INST] 0W-20. </s>", "[INST]"),
        ("### Human: Which oil?### Assistant: 0W-20.", "### Human:"),
        ("<|im_start|>user\nWhich oil?<|im_end|>", "<|im_start|>"),
        ("<start_of_turn>user\nWhich oil?<end_of_turn>", "<start_of_turn>"),
        ("\n\nHuman: Which oil?\n\nAssistant: 0W-20.", "Human: and Assistant:"),
    ],
)
def test_text_that_is_a_rendered_chat_is_warned_of(tmp_path, text, mark):
    data = read(tmp_path, {"text": text})
    ((severity, field, reason),) = findings(data)
    assert (severity, field, data.inspection.usable) == (Severity.WARNING, "text", 1)
    assert f"({mark})" in reason
    assert "the user's words are trained on" in reason


def test_a_turn_that_is_rendered_already_is_warned_of_and_plain_prose_is_not(tmp_path):
    data = read(
        tmp_path,
        PAIR | {"prompt": "[INST] Which oil? [/INST]"},
        {"text": "The user: a human. ## Instructions"},
    )
    assert [(field, reason.partition(" (")[0]) for _, field, reason in findings(data)] == [
        ("prompt/completion", "a turn holds marks of a chat format")
    ]


def test_empty_lines_cost_no_more_than_their_number():
    assert chat_markup("a" + "\n" * 500_000 + "b") == ""
