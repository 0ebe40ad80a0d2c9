from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from neuroweaver.client import audit_head
from neuroweaver.client.audit_head import NotAHead, NotSigned
from neuroweaver.mesh.wire import signing
from neuroweaver.v1 import registry_pb2 as pb

KEY, OTHER_KEY = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
TIME = datetime(2026, 3, 14, 9, 26, 53, 589793, tzinfo=UTC)
# Put together by hand from the documented format, a line for each field.
STATEMENT = bytes.fromhex(
    "6e6575726f7765617665722d61756469742d686561642d763100"
    "00000005"
    "6772c3bc6e"
    "000000000000002a"
    "5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f"
    "00064cf896117121"
)


def signed(key: Ed25519PrivateKey = KEY) -> pb.AuditHead:
    public_key = key.public_key().public_bytes_raw()
    head = pb.AuditHead(
        project="grün",
        sequence=42,
        hash="5f" * 32,
        public_key=public_key,
        key_id=audit_head.key_id_of(public_key),
        signature=key.sign(STATEMENT),
    )
    head.time.FromDatetime(TIME)
    return head


def test_the_registry_and_the_client_mean_the_same_bytes():
    assert audit_head.statement(signed()) == STATEMENT
    assert signing.statement("grün", 42, "5f" * 32, TIME) == STATEMENT
    assert audit_head.key_id_of(KEY.public_key().public_bytes_raw()) == signing.SigningKey(KEY).key_id


def test_a_signed_head_is_taken_from_the_key_that_is_trusted():
    head = signed()

    audit_head.check(head, ())
    audit_head.check(head, {head.key_id, "0" * 16})


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence": 43},
        {"hash": "6f" * 32},
        {"project": "gruen"},
        {"signature": bytes(64)},
        {"signature": b"short"},
        {"signature": b""},
        {"public_key": OTHER_KEY.public_key().public_bytes_raw()},
        {"public_key": b"short"},
        {"key_id": "0" * 16},
    ],
    ids=str,
)
def test_a_head_that_was_changed_is_not_signed(changes):
    head = signed()
    for name, value in changes.items():
        setattr(head, name, value)

    with pytest.raises(NotSigned):
        audit_head.check(head, ())


def test_a_head_signed_earlier_or_later_is_not_that_one():
    head = signed()
    head.time.FromMicroseconds(head.time.ToMicroseconds() + 1)

    with pytest.raises(NotSigned):
        audit_head.check(head, ())


def test_a_forgers_own_key_is_not_taken_for_the_one_that_is_trusted():
    forged = signed(OTHER_KEY)

    audit_head.check(forged, ())
    with pytest.raises(NotSigned, match=f"by the key {forged.key_id}, not by {signed().key_id}"):
        audit_head.check(forged, {signed().key_id})


def test_a_head_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "head.json"
    path.write_text("the one before")

    audit_head.write(path, signed())

    assert audit_head.read(path) == signed()
    assert json.loads(path.read_text())["key_id"] == signed().key_id
    assert [each.name for each in tmp_path.iterdir()] == ["head.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"sequence": 1}', '{"hash": "x"}', '{"seq": 1}', '{"sequence": -1, "hash": "%s"}' % ("a" * 64)]
)  # fmt: skip
def test_a_file_of_something_else_is_no_head(tmp_path, text):
    path = tmp_path / "head.json"
    path.write_text(text)

    with pytest.raises(NotAHead, match=r"head\.json"):
        audit_head.read(path)
