from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroweaver.cluster import quantities
from neuroweaver.cluster.quantities import NotAQuantity, canonical, parse, written


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("500m", "0.5"),
        ("0.5", "0.5"),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1E", 10**18),
        ("2Ki", 2048),
        ("1.5Gi", 3 * 2**29),
        ("3T", 3 * 10**12),
        ("100n", "1e-7"),
        (".5", "0.5"),
        ("5.", 5),
        ("-1", -1),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_quantity_is_read_exactly(text: str, value: str | int):
    assert parse(text) == Decimal(value)


@pytest.mark.parametrize(
    "text",
    [
        "10GB",
        "",
        "ten",
        "1 Gi",
        "1gi",
        "Gi",
        "1e",
        "NaN",
        "Infinity",
        "1K",
        "1mm",
        "0x10",
        "1\n",
        "1Ti1",
        "1e9999",
        "\uff11",
    ],
)
def test_what_is_no_quantity_is_refused(text: str):
    with pytest.raises(NotAQuantity):
        parse(text)


def test_the_same_amount_has_one_way_of_writing():
    assert canonical("0.5") == canonical("500m") == "500m"
    assert canonical("1024Mi") == canonical("1Gi") == "1Gi"
    assert canonical("1000m") == "1"
    assert canonical("0") == "0"
    assert canonical("1500M") == "1500000000"


@given(st.integers(0, 2**62), st.sampled_from(["", "m", "k", "Ki", "Mi"]))
def test_writing_loses_nothing(number: int, unit: str):
    try:
        value = parse(f"{number}{unit}")
    except NotAQuantity:
        return
    assert parse(written(value)) == value


def test_amounts_are_compared_as_amounts():
    assert quantities.equal("1", "1000m")
    assert not quantities.equal("1", "1k")
    assert quantities.equal("neither", "neither")


def test_less_than_nothing_is_nothing_to_ask_for():
    assert quantities.amount("0") == 0
    with pytest.raises(NotAQuantity, match="negative"):
        quantities.amount("-1")


def test_cores_and_bytes_are_written_shortly():
    assert [quantities.of_cores(each) for each in (0.5, 2.0, 0.0)] == ["500m", "2", "0"]
    assert [quantities.of_bytes(each) for each in (1 << 30, (1 << 20) + 1, 5)] == ["1024Mi", "2Mi", "5"]
