from __future__ import annotations

import json

import pytest

from neuroweaver.artifacts.serving_config import BadConfig, parse, read

DIGEST = "0123456789abcdef" * 4
GIVEN = {
    "model": "advisor",
    "version": "1.2.0",
    "files_folder": "/files",
    "files": [{"path": "adapter/a.safetensors", "digest": DIGEST, "size_bytes": 3}],
    "base_folder": "/base",
    "base_digest": DIGEST,
}


def test_what_is_not_given_has_a_default():
    config = parse(GIVEN)
    assert (config.host, config.weight_type, config.adapter_mode) == ("127.0.0.1", "", "merged")
    assert (config.max_batch_size, config.max_queue_size, config.max_context_tokens) == (16, 256, 0)


def test_a_model_may_carry_its_version():
    assert parse({"model": "advisor@2.0.0", "files_folder": "/f"}).version == "2.0.0"
    assert parse({"model": "advisor@2.0.0", "version": "2.0.0", "files_folder": "/f"}).name == "advisor"


@pytest.mark.parametrize("value", ["bf16", "BF16", "WEIGHT_TYPE_BF16"])
def test_enums_may_be_written_as_in_the_contract(value):
    assert parse({**GIVEN, "weight_type": value}).weight_type == "bf16"
    assert parse({**GIVEN, "weight_type": "WEIGHT_TYPE_UNSPECIFIED"}).weight_type == ""
    assert parse({**GIVEN, "adapter_mode": "ADAPTER_MODE_SWITCHED"}).adapter_mode == "switched"
    assert parse({**GIVEN, "adapter_mode": "ADAPTER_MODE_UNSPECIFIED"}).adapter_mode == "merged"


def file(**changes):
    return {"files": [{**GIVEN["files"][0], **changes}]}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"model": "advisor@9.9.9"}, "version"),
        ({"colour": "red"}, "colour"),
        ({"port": 70_000}, "port"),
        ({"port": "80"}, "port"),
        ({"port": True}, "port"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"max_queue_size": -1}, "max_queue_size"),
        ({"max_queue_size": 1.5}, "max_queue_size"),
        ({"stall_s": 0}, "stall_s"),
        ({"weight_type": "fp4"}, "weight_type"),
        ({"adapter_mode": "mixed"}, "adapter_mode"),
        ({"base_digest": "abc"}, "base_digest"),
        ({"files": {}}, "files"),
        ({"files": ["a"]}, r"files\[0\]"),
        (file(path="../../etc/passwd"), "path"),
        (file(path="/etc/passwd"), "path"),
        (file(path=""), "path"),
        (file(path="a\0b"), "path"),
        (file(digest="X" * 64), "digest"),
        (file(size_bytes=-1), "size_bytes"),
        ({"files": GIVEN["files"] * 2}, "twice"),
        ({"files_folder": "", "base_folder": ""}, "files_folder"),
    ],
)
def test_what_is_wrong_is_named(changes, named):
    with pytest.raises(BadConfig, match=named):
        parse({**GIVEN, **changes})


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00"])
def test_a_file_without_a_json_object_is_refused(tmp_path, content):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(BadConfig, match=r"c\.json"):
        read(tmp_path / "c.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadConfig, match="none"):
        read(tmp_path / "none.json")


def test_what_is_written_is_read_again():
    config = parse({**GIVEN, "model": "advisor@1.2.0", "max_batch_size": 3, "stall_s": 5, "revision": 7})
    assert parse(json.loads(json.dumps(config.plain()))) == config


def test_the_text_of_a_configuration_does_not_change_with_fields_that_nobody_set():
    assert list(parse(GIVEN).plain()) == [
        "model", "version", "revision", "host", "port", "files_folder", "files", "base_folder", "base_digest",
        "weight_type", "adapter_mode", "max_queue_size", "drain_s",
    ]  # fmt: skip
    assert parse({**GIVEN, "max_context_tokens": 8}).plain()["max_context_tokens"] == 8
