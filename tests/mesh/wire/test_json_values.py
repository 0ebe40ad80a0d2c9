from __future__ import annotations

import pytest

from neuroweaver.mesh.wire.json_values import Broken, parsed


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (rb'"\ud83d"', ""),
        (rb'{"model": "ad\uDE00visor"}', "model"),
        (rb'{"messages": [{"content": "fine"}, {"content": "emoji \ud83d"}]}', "messages[1].content"),
        (rb'{"a": [[], ["\\\ud83d"]]}', "a[1][0]"),
        (rb'{"a": {"\ud83d": 1}}', "a"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_with_its_path(content, path):
    with pytest.raises(Broken, match="half of a surrogate pair, which is no character") as raised:
        parsed(content)
    assert raised.value.path == path


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (rb'"\ud83d\ude00"', "😀"),
        (rb'"\\ud83d"', "\\ud83d"),
        ("\ufeff[1]".encode(), [1]),
    ],
)
def test_whole_pairs_escaped_backslashes_and_a_byte_order_mark_are_read(content, value):
    assert parsed(content) == value


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b'"\xff"', "is not UTF-8"),
        (b'"\xed\xa0\xbd"', "is not UTF-8"),
        ('"a"'.encode("utf-16"), "is not UTF-8"),
        (b"", "is not JSON"),
        (b'{"a": NaN}', "is not JSON"),
        (b"-Infinity", "is not JSON"),
        (b"9" * 5000, "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_no_json_is_refused(content, rule):
    with pytest.raises(Broken, match=rule) as raised:
        parsed(content)
    assert raised.value.path == ""
