from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abandoning import is_given_up
from neuroweaver.trainer.data import dataset
from neuroweaver.trainer.data.dataset import Dataset, DatasetEmptyError, DatasetMalformedError
from neuroweaver.trainer.data.files import (
    DatasetError,
    DatasetNotFoundError,
    DatasetRefusedError,
    builtins,
    locate,
)
from neuroweaver.trainer.data.rows import Example, Message, Severity
from neuroweaver.trainer.data.split import split

PROMPTS = {"service_advisor": "You advise on service.", "parts_specialist": "You know parts."}


def write(folder: Path, name: str, content: bytes | str | list[object]) -> Path:
    path = folder / name
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def only(data: Dataset) -> tuple[tuple[str, str], ...]:
    (example,) = data.examples
    return tuple((message.role, message.content) for message in example.messages)


def reasons(data: Dataset) -> list[tuple[int, str, str]]:
    return [(finding.line, finding.column_or_field, finding.reason) for finding in data.inspection.findings]


# --- layouts


@pytest.mark.parametrize(
    ("row", "layout"),
    [
        ({"question": "Q", "answer": "A"}, "question/answer"),
        ({"input": "Q", "output": "A"}, "input/output"),
        ({"instruction": "Q", "response": "A"}, "instruction/response"),
        ({"instruction": "Q", "output": "A", "input": ""}, "instruction/response"),
        ({"prompt": "Q", "completion": "A"}, "prompt/completion"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "messages"),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            "conversations",
        ),
    ],
)
def test_each_layout_becomes_a_user_turn_and_an_assistant_turn(tmp_path, row, layout):
    data = dataset.read(write(tmp_path, "a.jsonl", [row]))
    dataset.require(data)
    assert only(data) == (("user", "Q"), ("assistant", "A"))
    assert data.inspection.layouts == {layout: 1}


def test_the_input_of_an_instruction_follows_it_after_a_blank_line(tmp_path):
    data = dataset.read(
        write(tmp_path, "a.jsonl", [{"instruction": "Sum up", "input": "x y", "output": "z"}])
    )
    assert only(data)[0] == ("user", "Sum up\n\nx y")


CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize("nothing", [None, "", " ", [], {}])
@pytest.mark.parametrize(
    ("row", "without", "layout"),
    [
        ({"question": "Q", "answer": "A"}, ("messages", "conversations", "prompt", "completion"), "question/answer"),
        ({"instruction": "Q", "output": "A"}, ("response", "messages"), "instruction/response"),
        ({"prompt": "Q", "response": "A"}, ("question", "answer", "completion"), "prompt/completion"),
        ({"messages": CHAT}, ("conversations", "question", "answer", "text"), "messages"),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, ("messages",), "conversations"),
        ({"text": "Q A"}, ("messages", "question", "answer"), "text"),
    ],
)  # fmt: skip
def test_a_merged_tables_row_is_of_the_layout_whose_fields_have_values(
    tmp_path, nothing, row, without, layout
):
    inspection = dataset.inspect(write(tmp_path, "a.jsonl", [dict.fromkeys(without, nothing) | row]))
    assert (inspection.findings, dict(inspection.layouts)) == ((), {layout: 1})
    plain, merged = (
        dataset.read(write(tmp_path, name, [fields])).examples
        for name, fields in (("b.jsonl", row), ("c.jsonl", dict.fromkeys(without, nothing) | row))
    )
    assert plain == merged


@pytest.mark.parametrize("answer", ["[]", "{}", "null"])
def test_an_answer_that_looks_like_none_is_one(tmp_path, answer):
    row = {"instruction": "Which faults?", "response": answer, "output": "other"}
    (example,) = dataset.read(write(tmp_path, "a.jsonl", [row])).examples
    assert example.messages[-1].content == answer


def test_a_text_row_has_text_and_no_messages(tmp_path):
    data = dataset.read(write(tmp_path, "a.jsonl", [{"text": "plain words"}]), system_prompts=PROMPTS)
    assert data.examples == (Example((), 1, "plain words", ""),)


def test_layouts_may_be_mixed_and_are_counted(tmp_path):
    rows = [{"text": "t"}, {"question": "q", "answer": "a"}, {"question": "q2", "answer": "a"}]
    assert dataset.inspect(write(tmp_path, "a.jsonl", rows)).layouts == {"text": 1, "question/answer": 2}


def test_csv_and_jsonl_of_the_same_rows_give_the_same_examples(tmp_path):
    csv_file = b'Question , answer\n"How, exactly?","Like ""this"".\nTwo lines."\nB?,b\n'
    rows = [
        {"question": "How, exactly?", "answer": 'Like "this".\nTwo lines.'},
        {"question": "B?", "answer": "b"},
    ]
    ours = dataset.read(write(tmp_path, "a.csv", b"\xef\xbb\xbf" + csv_file.replace(b" answer", b"answer")))
    theirs = dataset.read(write(tmp_path, "a.jsonl", rows))
    assert [example.messages for example in ours.examples] == [
        example.messages for example in theirs.examples
    ]
    assert [example.line for example in ours.examples] == [2, 4]


def test_byte_order_mark_blank_lines_and_windows_line_ends_are_tolerated(tmp_path):
    content = b'\xef\xbb\xbf{"question":"q","answer":"a"}\r\n\r\n{"question":"r","answer":"a"}'
    data = dataset.read(write(tmp_path, "a.jsonl", content))
    dataset.require(data)
    assert [example.line for example in data.examples] == [1, 3]


# --- system prompts


def test_a_row_gets_the_system_prompt_of_its_own_specialization_or_else_of_the_job(tmp_path):
    rows = [
        {"question": "q", "answer": "a"},
        {"question": "q", "answer": "b", "specialization": "parts_specialist"},
        {"messages": [{"role": r, "content": "c"} for r in ("system", "user", "assistant")]},
        {"system": "own", "question": "q", "answer": "c"},
    ]
    data = dataset.read(
        write(tmp_path, "a.jsonl", rows), system_prompts=PROMPTS, specialization="service_advisor"
    )
    dataset.require(data)
    first = [example.messages[0] for example in data.examples]
    texts = [PROMPTS["service_advisor"], PROMPTS["parts_specialist"], "c", "own"]
    assert first == [Message("system", text) for text in texts]
    assert [example.specialization for example in data.examples] == [
        "service_advisor",
        "parts_specialist",
        "service_advisor",
        "service_advisor",
    ]


def test_without_system_prompts_none_is_added(tmp_path):
    data = dataset.read(write(tmp_path, "a.jsonl", [{"question": "q", "answer": "a"}]))
    assert [message.role for message in data.examples[0].messages] == ["user", "assistant"]


def test_a_row_of_an_unknown_specialization_is_an_error(tmp_path):
    rows = [{"question": "q", "answer": "a", "specialization": "barista"}]
    data = dataset.read(write(tmp_path, "a.jsonl", rows), system_prompts=PROMPTS)
    assert reasons(data) == [
        (
            1,
            "specialization",
            "unknown specialization 'barista'; use one of parts_specialist, service_advisor",
        )
    ]


def test_an_unknown_specialization_of_the_job_names_its_field(tmp_path):
    path = write(tmp_path, "a.jsonl", [{"text": "t"}])
    with pytest.raises(DatasetError) as raised:
        dataset.read(path, system_prompts=PROMPTS, specialization="barista")
    assert raised.value.field == "specialization"


# --- faults of lines


@pytest.mark.parametrize(
    ("line", "where", "reason"),
    [
        (b'{"question": "q"', "column 17", "malformed JSON at column 17"),
        (b'{"question": "q", "answer": NaN}', "", "NaN is not JSON"),
        (b'{"question": "q", "answer": -Infinity}', "", "-Infinity is not JSON"),
        (b'{"answer": "a", "answer": "b"}', "", "duplicate key 'answer'"),
        (b"[1, 2]", "", "must be a JSON object"),
        (b"[" * 100_000, "", "nested too deeply"),
        (b"9" * 5000, "", "malformed JSON"),
        (b'{"text": "a\xffb"}', "", "not UTF-8: byte 0xff at byte 11 of the line (offset 45 of the file)"),
        (b'{"question": "q"}', "answer", "missing"),
        (b'{"question": "q", "answer": 7}', "answer", "must be a string, not a number"),
        (b'{"question": "  ", "answer": "a"}', "question", "is empty"),
        (b'{"question": "q", "answer": null}', "answer", "must be a string, not null"),
        (b'{"text": "\\ud800"}', "text", "surrogate"),
        (b'{"text": "a\\u0000"}', "text", "NUL"),
        (b'{"name": "n"}', "", "unknown fields: name; use one of messages"),
        (b'{"prompt": "p", "chosen": "c", "rejected": "r"}', "chosen", "a preference pair"),
        (b'{"messages": "hello"}', "messages", "must be a list, not a string"),
        (b'{"messages": []}', "messages", "empty list"),
        (b'{"messages": ["hi"]}', "messages[0]", "must be an object, not a string"),
        (b'{"messages": [{"role": "bot", "content": "c"}]}', "messages[0].role", "unknown role 'bot'"),
        (b'{"messages": [{"role": "user", "content": ""}]}', "messages[0].content", "is empty"),
        (b'{"messages": [{"role": "user"}]}', "messages[0].content", "missing"),
        (b'{"messages": [{"role": "user", "content": "c"}]}', "messages", "no assistant turn"),
        (b'{"messages": [{"role": "assistant", "content": "c"}]}', "messages", "no user turn"),
    ],
)
def test_a_line_at_fault_is_found_with_its_place(tmp_path, line, where, reason):
    good = b'{"question": "q", "answer": "a"}\n'
    assert len(good) == 33
    data = dataset.read(
        write(tmp_path, "bad.jsonl", good + b"\n" + line + b"\n" + good.replace(b"q", b"r", 2))
    )
    assert data.rows == 3
    ((at, name, told),) = [found for found in reasons(data) if found[0] == 3]
    assert (at, name) == (3, where)
    assert reason in told
    with pytest.raises(DatasetMalformedError, match=r"^bad\.jsonl:3: ") as raised:
        dataset.require(data)
    assert raised.value.field == "dataset_path"
    assert raised.value.findings[0].line == 3


def test_a_late_system_message_is_refused(tmp_path):
    turns = [{"role": r, "content": "c"} for r in ("user", "system", "assistant")]
    data = dataset.read(write(tmp_path, "a.jsonl", [{"messages": turns}]))
    assert reasons(data) == [(1, "messages[1]", "a system message must be the first one")]


def test_an_over_long_line_is_found_and_the_next_line_is_read(tmp_path):
    content = b'{"text": "' + b"x" * 200_000 + b'"}\n{"text": "short"}\n'
    path = write(tmp_path, "a.jsonl", content)
    data = dataset.read(path, max_line_bytes=100)
    assert reasons(data) == [(1, "", "longer than 100 bytes")]
    assert [example.text for example in data.examples] == ["short"]
    assert data.digest == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("extra", [0, 1])
def test_the_line_limit_counts_the_content_without_its_line_end(tmp_path, extra):
    text = json.dumps({"text": "x" * 50})
    path = write(tmp_path, "a.jsonl", text + " " * extra + "\r\n")
    assert dataset.inspect(path, max_line_bytes=len(text)).errors == extra


def test_a_cut_line_is_never_taken_for_a_whole_one(tmp_path):
    text = json.dumps({"text": "x"})
    path = write(tmp_path, "a.jsonl", text + "\r\r{} more")
    assert dataset.inspect(path, max_line_bytes=len(text)).usable == 0


def test_a_json_array_and_a_file_of_another_kind_get_a_hint(tmp_path):
    for text in ('[\n{"question": "q"}\n]', '[{"question": "q", "answer": "a"}]'):
        array = dataset.read(write(tmp_path, "a.json", text))
        assert "looks like one JSON array" in array.inspection.findings[0].reason
    wide = dataset.read(write(tmp_path, "b.jsonl", '{"text": "t"}'.encode("utf-16")))
    assert "looks like UTF-16 text" in wide.inspection.findings[0].reason


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('{"text": "a"},\n{"text": "b"}\n', "without a comma"),
        ('{"text": "a"}\r{"text": "b"}\r', "CR alone"),
        ('{"text": "a"} {"text": "b"}\n', "one line holds one object"),
    ],
)
def test_a_line_with_more_than_its_object_says_what_is_too_much(tmp_path, text, hint):
    data = dataset.read(write(tmp_path, "a.jsonl", text))
    assert hint in data.inspection.findings[0].reason


def test_a_key_that_is_no_text_is_an_error(tmp_path):
    data = dataset.read(write(tmp_path, "a.jsonl", '{"text": "a", "\\ud800": 1}'))
    assert [reason for _, _, reason in reasons(data)] == [
        "malformed JSON: a key holds half of a surrogate pair, which is no character"
    ]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"question,answer\nq\n", 2, "1 columns where the header has 2"),
        (b"question,answer\nq,a,x\n", 2, "3 columns where the header has 2"),
        (b'question,answer\nq,"a\nb\n', 2, "never closed"),
        (b'question,answer\nq,"a"b"c"\n', 2, "malformed CSV"),
        (b"question,answer\nq,\n", 2, "is empty"),
        (b"question,answer,answer\nq,a,b\n", 1, "duplicate column 'answer'"),
        (b"name;age\nq;7\n", 1, "unknown columns: name;age; use one of question/answer"),
        (b"question,answer\nq,\xff\n", 2, "not UTF-8"),
        (b"question,answer\nq,a\rb\n", 2, "malformed CSV"),
    ],
)
def test_a_csv_row_at_fault_is_found_with_its_line(tmp_path, content, line, reason):
    data = dataset.read(write(tmp_path, "a.csv", content))
    assert data.inspection.findings[0].line == line
    assert reason in data.inspection.findings[0].reason
    assert not data.inspection.is_usable
    assert data.digest == hashlib.sha256(content).hexdigest()
    with pytest.raises(DatasetMalformedError):
        dataset.require(data)


def test_a_header_of_very_many_columns_is_looked_at_once(tmp_path):
    """Counting each among all would take minutes."""
    content = ",".join(f"c{number}" for number in (*range(130_000), 9)) + "\n"
    data = dataset.read(write(tmp_path, "a.csv", content))
    assert [finding.reason for finding in data.inspection.findings] == ["duplicate column 'c9'"]


def test_an_open_quote_swallows_no_more_than_one_line_limit(tmp_path):
    rows = "".join(f"question {n},answer {n}\n" for n in range(100))
    data = dataset.read(write(tmp_path, "a.csv", 'question,answer\nq,"open\n' + rows), max_line_bytes=500)
    assert "never closed" in data.inspection.findings[0].reason
    assert 50 < len(data.examples) < 100


def test_a_long_csv_field_within_the_line_limit_is_read(tmp_path):
    data = dataset.read(write(tmp_path, "a.csv", "question,answer\nq," + "a" * 500_000 + "\n"))
    assert len(data.examples[0].messages[1].content) == 500_000


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.csv", b"", "a.csv: the file is empty"),
        ("a.jsonl", b"\n \n", "a.jsonl: the file holds no rows"),
        ("a.csv", b"question,answer\n", "a.csv: the file holds no rows"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path, name, content, reason):
    with pytest.raises(DatasetEmptyError) as raised:
        dataset.require(dataset.inspect(write(tmp_path, name, content)))
    assert raised.value.reason == reason


def test_findings_are_bounded_but_counted_and_warnings_hide_no_error(tmp_path):
    rows = [{"question": "q", "answer": "a"}] * 300 + [{"question": 1, "answer": "a"}] * 300
    inspection = dataset.inspect(write(tmp_path, "a.jsonl", rows))
    assert inspection.errors == 300
    shown = Counter((finding.severity, finding.line) for finding in inspection.findings)
    warnings = [(Severity.WARNING, line) for line in range(2, 102)]
    assert shown == Counter([*warnings, *((Severity.ERROR, line) for line in range(301, 401))])
    with pytest.raises(DatasetMalformedError, match=r"and 297 more"):
        dataset.require(inspection)


@pytest.mark.parametrize(
    ("roles", "doubt"),
    [
        (("assistant", "user", "assistant"), "speaks first"),
        (("user", "assistant", "user"), "no answer to learn"),
        (("user", "user", "assistant"), "two turns of one role in a row"),
    ],
)
def test_a_doubtful_chat_is_used_with_a_warning(tmp_path, roles, doubt):
    row = {"messages": [{"role": role, "content": "c"} for role in roles]}
    data = dataset.read(write(tmp_path, "a.jsonl", [row]))
    dataset.require(data)
    assert [finding.severity for finding in data.inspection.findings] == [Severity.WARNING]
    assert doubt in data.inspection.findings[0].reason


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=400), ending=st.sampled_from([".jsonl", ".csv"]), limit=st.integers(8, 64))
def test_random_bytes_raise_nothing(tmp_path_factory, content, ending, limit):
    path = tmp_path_factory.getbasetemp() / f"random{ending}"
    path.write_bytes(content)
    data = dataset.read(path, max_line_bytes=limit)
    assert data.digest == hashlib.sha256(content).hexdigest()
    assert data.inspection.usable == len(data.examples)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "weight", "name"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
FIELDS = [
    "messages",
    "conversations",
    "question",
    "answer",
    "instruction",
    "input",
    "output",
    "text",
    "system",
    "specialization",
    "context",
    "label",
    "weight",
    "train",
    "tools",
    "chosen",
    "rejected",
]


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4), min_size=1, max_size=4)
)
def test_rows_of_any_shape_give_an_example_or_an_error(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "shapes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    inspection = dataset.inspect(path, system_prompts=PROMPTS)
    assert inspection.usable + inspection.left_out + inspection.errors == inspection.rows == len(rows)


# --- reading in passes


def test_a_reading_gives_the_examples_of_read_and_inspect_its_counts(tmp_path):
    rows = [{"question": f"q{n}", "answer": "a"} for n in range(5)] + [{"question": "broken"}]
    path = write(tmp_path, "a.jsonl", rows)
    data = dataset.read(path)
    assert tuple(dataset.Reading(path)) == data.examples
    assert dataset.inspect(path) == data.inspection
    assert (data.inspection.usable, data.rows) == (5, 6)


def test_a_reading_goes_no_further_than_asked(tmp_path):
    path = write(tmp_path, "a.jsonl", b'{"text": "first"}\n' + b"x" * 5_000_000)
    assert next(iter(dataset.Reading(path))).text == "first"


def test_a_file_that_is_gone_or_closed_is_a_dataset_error(tmp_path):
    with pytest.raises(DatasetNotFoundError):
        dataset.read(tmp_path / "gone.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DatasetError, match="directory"):
        dataset.read(tmp_path / "folder.jsonl")


# --- locate


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "t"}\n')
    (tmp_path / "data" / "sub" / "deep.csv").write_text("text\nt\n")
    (tmp_path / "secret.jsonl").write_text('{"text": "s"}\n')
    return tmp_path / "data"


def test_a_path_inside_of_the_folder_is_located_relative_or_absolute(folder):
    assert locate("train.jsonl", folder) == folder / "train.jsonl"
    assert locate("sub/deep.csv", folder) == folder / "sub" / "deep.csv"
    assert locate(str(folder / "train.jsonl"), folder) == folder / "train.jsonl"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "is empty"),
        ("../secret.jsonl", "'..' is not allowed"),
        ("sub/../../secret.jsonl", "'..' is not allowed"),
        ("/etc/passwd", "outside"),
        ("/nowhere/at/all.jsonl", "outside"),
        ("train.jsonl\0.csv", "NUL"),
        ("sub", "is a folder"),
        (".", "is a folder"),
        ("x" * 5000, "File name too long"),
        ("train.jsonl/x", "Not a directory"),
        ("leak.jsonl", "outside"),
        ("leak/secret.jsonl", "outside"),
        ("loop.jsonl", ""),
        ("pipe.jsonl", "no regular file"),
        ("notes.txt", "unknown ending"),
    ],
)
def test_a_path_that_leaves_the_folder_or_is_no_file_is_refused(folder, path, reason):
    (folder / "leak.jsonl").symlink_to(folder.parent / "secret.jsonl")
    (folder / "leak").symlink_to(folder.parent)
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    (folder / "notes.txt").write_text("notes")
    os.mkfifo(folder / "pipe.jsonl")
    with pytest.raises(DatasetRefusedError) as raised:
        locate(path, folder)
    assert reason in raised.value.reason
    assert raised.value.field == "dataset_path"


def test_a_link_that_stays_inside_is_followed(folder):
    (folder / "latest.jsonl").symlink_to("train.jsonl")
    assert locate("latest.jsonl", folder) == folder / "train.jsonl"


def test_a_data_folder_reached_through_a_link_works(folder):
    link = folder.parent / "link"
    link.symlink_to(folder)
    for path in ("train.jsonl", str(link / "train.jsonl"), str(folder / "train.jsonl")):
        assert locate(path, link) == folder / "train.jsonl"


def test_a_missing_file_is_told_with_the_nearest_name(folder):
    with pytest.raises(DatasetNotFoundError, match=r"did you mean train\.jsonl"):
        locate("trian.jsonl", folder)
    with pytest.raises(DatasetNotFoundError, match=r"which holds train\.jsonl"):
        locate("zzz/other.csv", folder)


@given(path=st.text(max_size=30))
def test_no_path_leaves_the_folder(tmp_path_factory, path):
    folder = tmp_path_factory.getbasetemp() / "fenced"
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").touch()
    with contextlib.suppress(DatasetError):
        assert locate(path, folder) == folder / "a.jsonl"


def test_a_shipped_set_is_located_by_name_and_an_unknown_one_lists_what_there_is(tmp_path, monkeypatch):
    shipped = write(tmp_path, "train.jsonl", [{"text": "t"}])
    monkeypatch.setattr("neuroweaver.trainer.data.files.builtins", lambda: {"automotive": shipped})
    assert locate("builtin:automotive", tmp_path / "elsewhere") == shipped
    with pytest.raises(DatasetNotFoundError, match="use builtin:automotive"):
        locate("builtin:../secret", tmp_path)


# --- real data


def test_real_prompts_and_answers_are_read_whole(tmp_path):
    root = Path(__file__).parents[3]
    data = Path(os.environ.get("NEUROWEAVER_TEST_DATA", root / ".." / "shared" / "data"))
    source = data / "preferences" / "train.jsonl"
    if not source.is_file():
        pytest.skip("no real data: set NEUROWEAVER_TEST_DATA to a folder with preferences/train.jsonl")
    pairs = [json.loads(line) for line in source.read_text().splitlines()]
    rows = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    read = dataset.read(write(tmp_path, "real.jsonl", rows))
    dataset.require(read)
    assert len(read.examples) == len(pairs)
    assert [example.messages[1].content for example in read.examples] == [pair["chosen"] for pair in pairs]
    train, validation = split(read.examples, 0.1, seed=0)
    asked = {example.messages[0].content for example in train}
    assert not asked & {example.messages[0].content for example in validation}


def test_the_shipped_automotive_set_is_without_fault():
    shipped = builtins()
    if "automotive" not in shipped:
        pytest.skip("the automotive training set is not there")
    data = dataset.read(shipped["automotive"])
    dataset.require(data)
    assert all(example.specialization for example in data.examples)


async def test_a_file_is_not_read_on_when_nobody_waits_for_it(tmp_path):
    path = write(tmp_path, "rows.jsonl", [{"prompt": "Q", "response": "A"}] * 3)
    assert await is_given_up(lambda: dataset.inspect(path))
