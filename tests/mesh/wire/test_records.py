from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import pytest
from semver import Version

from neuroweaver.mesh.wire.records import Records
from neuroweaver.v1.common_pb2 import Interval

NOW = datetime(2026, 12, 1, 3, 4, 5, 678901, tzinfo=UTC)


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Part:
    x: float
    pairs: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Record:
    time: datetime | None
    span: timedelta
    colour: Colour
    message: Interval
    by_number: Mapping[float, int]
    by_name: Mapping[str, Part]
    names: frozenset[str]
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    text: str = "unknown"


RECORD = Record(
    time=NOW,
    span=timedelta(milliseconds=1500),
    colour=Colour.RED,
    message=Interval(lower=0.25, upper=0.5),
    by_number={0.5: 1, math.inf: 2},
    by_name={"a": Part(1.0, (("b", 2),))},
    names=frozenset({"q"}),
    part=Part(2.0),
    parts=(Part(3.0), Part(4.0)),
    text="ä",
)


def test_a_record_comes_back_as_it_was():
    records = Records()
    assert records.load(Record, records.dump(RECORD)) == RECORD


def test_moments_and_spans_are_microseconds():
    plain = Records().plain(RECORD)
    assert (plain["time"], plain["span"]) == (1796094245678901, 1_500_000)


def test_what_a_record_lacks_takes_its_default_and_what_is_unknown_is_left_out():
    records = Records()
    plain = records.plain(RECORD)
    del plain["text"], plain["parts"]
    plain["colour_of_a_later_version"] = "blue"
    assert records.made(Record, plain).text == "unknown"


def test_a_mapping_may_be_pairs_or_an_object():
    records = Records()
    plain = records.plain(RECORD)
    assert plain["by_number"] == [[0.5, 1], [math.inf, 2]]
    assert plain["by_name"] == {"a": {"x": 1.0, "pairs": [("b", 2)]}}
    plain["by_name"] = [["a", plain["by_name"]["a"]]]
    assert records.made(Record, plain) == RECORD


def test_a_hook_says_how_another_librarys_class_is_written():
    @dataclass(frozen=True)
    class Released:
        version: Version | None

    records = Records()
    records.hook(Version, str, Version.parse)
    released = Released(Version(1, 2, 3))
    assert json.loads(records.dump(released)) == {"version": "1.2.3"}
    assert records.load(Released, records.dump(released)) == released
    assert records.load(Released, '{"version": null}') == Released(None)


def test_a_record_of_the_wrong_kind_is_a_mistake():
    @dataclass(frozen=True)
    class Odd:
        thing: object = field(default_factory=object)

    with pytest.raises(TypeError):
        Records().dump(Odd())
