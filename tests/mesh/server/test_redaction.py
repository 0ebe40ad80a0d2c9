from __future__ import annotations

import json

import pytest
from google.protobuf.struct_pb2 import Struct

from mesh.echo import pb
from neuroweaver.mesh.server.redaction import HIDDEN, redacted


def test_only_fields_that_are_set_are_shown():
    ask = pb.Ask(text="hello", config=pb.Config(learning_rate=0.5), since_sequence=3)

    assert redacted(ask) == {"text": "hello", "config": {"learning_rate": 0.5}, "since_sequence": 3}


@pytest.mark.parametrize("field", ["api_key", "lease_token", "plain"])
def test_secrets_are_hidden_by_their_name_or_by_the_contract(field):
    assert redacted(pb.Ask(**{field: "hunter2"})) == {field: HIDDEN}


def test_fields_that_only_sound_like_secrets_are_shown():
    assert redacted(pb.Ask(page_token="abc", max_tokens=7)) == {"page_token": "abc", "max_tokens": 7}


def test_map_entries_are_hidden_by_their_key():
    shown = redacted(pb.Ask(labels={"OPENAI_API_KEY": "sk-1", "db_password": "x", "team": "blue"}))

    assert shown == {"labels": {"OPENAI_API_KEY": HIDDEN, "db_password": HIDDEN, "team": "blue"}}


def test_a_free_form_struct_hides_secrets_too():
    struct = Struct()
    struct.update({"password": "hunter2", "rate": 1})

    assert "hunter2" not in json.dumps(redacted(struct))


def test_what_is_large_is_cut():
    shown = redacted(pb.Ask(text="x" * 10_000, blob=b"\x00" * 9, more=[pb.Config(learning_rate=1)] * 100))

    assert len(shown["text"]) < 600
    assert shown["blob"] == "[9 bytes]"
    assert len(shown["more"]) == 20
    json.dumps(shown)
