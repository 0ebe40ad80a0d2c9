from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semver import Version

from neuroweaver.mesh.wire.errors import FailedPrecondition, InvalidArgument
from neuroweaver.registry.domain.versions import (
    Level,
    first,
    line_end,
    parse,
    parse_range,
    precedence,
    raised,
)

# The order that semver.org gives, extended by numbers of different lengths and by words that begin alike.
ASCENDING = [
    "0.0.0-0", "0.0.0", "0.0.9", "0.0.10", "0.9.0", "0.10.0",
    "1.0.0-0", "1.0.0-9", "1.0.0-10", "1.0.0--", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-alphabet",
    "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-beta-", "1.0.0-rc.1", "1.0.0-rc.1.0", "1.0.0-rc.9",
    "1.0.0-rc.10", "1.0.0", "1.0.1-rc.1", "1.0.1", "1.1.0", "2.0.0", "10.0.0", "100.0.0-x", "999999999999999999.0.0",
]  # fmt: skip

numbers = st.integers(0, 10**18 - 1) | st.integers(0, 12)
identifiers = st.from_regex(r"0|[1-9][0-9]{0,20}|[0-9]{0,3}[a-zA-Z-][0-9a-zA-Z-]{0,6}", fullmatch=True)
prereleases = st.none() | st.lists(identifiers, min_size=1, max_size=4).map(".".join)
versions = st.builds(Version, numbers, numbers, numbers, prereleases)
small = st.builds(Version, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), prereleases)


def test_keys_sort_as_the_specification_orders_versions():
    keys = [precedence(parse("version", text)) for text in ASCENDING]

    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


@given(versions, versions)
def test_keys_compare_as_versions_do(a: Version, b: Version):
    by_key = (precedence(a) > precedence(b)) - (precedence(a) < precedence(b))

    assert by_key == a.compare(b)


@given(versions, versions)
def test_no_key_is_the_beginning_of_another(a: Version, b: Version):
    assert a == b or not precedence(a).startswith(precedence(b))


@given(versions)
def test_keys_are_ascii_and_fit_their_column(version: Version):
    text = str(version)
    if len(text) <= 128:
        assert precedence(version).isascii()
        assert len(precedence(version)) <= 512


def test_the_longest_key_fits_its_column():
    assert len(precedence(parse("version", "0.0.0-" + ".".join("0" * 61)))) <= 512


def test_build_metadata_gives_no_precedence():
    assert precedence(Version.parse("1.0.0+a")) == precedence(Version.parse("1.0.0+b"))


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "1.2", "1.2.3.4", "01.2.3", "1.02.3", "1.2.3-01", "1.2.3-", "1.2.3+", "v1.2.3", " 1.2.3", "1.2.3 ",
        "1.2.3\n", "1.2.3\0", "1.2.3/4", "-1.2.3", "1.2.x", "\u0661.2.3", "1.2.3-ä", "1.2.3-rc..1", "1" + "0" * 400 + ".0.0",
        "1" + "0" * 18 + ".0.0", "1.2.3-" + "a" * 200,
    ],
)  # fmt: skip
def test_what_is_no_version_is_refused_by_name(text: str):
    with pytest.raises(InvalidArgument) as refused:
        parse("from_version", text)

    assert [field for field, _ in refused.value.violations] == ["from_version"]


@pytest.mark.parametrize(
    ("version", "level", "following"),
    [
        ("1.2.3", Level.MAJOR, "2.0.0"),
        ("1.2.3", Level.MINOR, "1.3.0"),
        ("1.2.3", Level.PATCH, "1.2.4"),
        ("1.2.3", Level.PRERELEASE, "1.2.4-rc.1"),
        ("1.2.4-rc.1", Level.PRERELEASE, "1.2.4-rc.2"),
        ("1.2.4-rc.9", Level.PRERELEASE, "1.2.4-rc.10"),
        ("1.2.4-beta.3", Level.PRERELEASE, "1.2.4-rc.1"),
        ("1.2.4-rc.2", Level.PATCH, "1.2.4"),
        ("1.3.0-rc.2", Level.MINOR, "1.3.0"),
        ("1.2.4-rc.2", Level.MINOR, "1.3.0"),
        ("2.0.0-rc.1", Level.MAJOR, "2.0.0"),
        ("1.2.3+build.7", Level.PATCH, "1.2.4"),
    ],
)
def test_raising(version: str, level: Level, following: str):
    assert str(raised(parse("version", version), level)) == following


@given(small, st.sampled_from(Level), st.sampled_from(["rc", "alpha", "x-1"]))
def test_raising_goes_up(version: Version, level: Level, label: str):
    assert precedence(raised(version, level, label)) > precedence(version)


@given(small, st.sampled_from(Level))
def test_a_line_holds_the_version_it_begins_with_and_ends_above_it(version: Version, level: Level):
    following = raised(version, level)

    assert precedence(following) < line_end(following, level)


def test_build_metadata_is_put_on_the_raised_version():
    assert str(raised(Version.parse("1.2.3+old"), Level.PATCH, build="c0ffee")) == "1.2.4+c0ffee"


def test_the_last_version_cannot_be_raised():
    with pytest.raises(FailedPrecondition, match="cannot be raised"):
        raised(Version.parse(f"{10**18 - 1}.0.0"), Level.MAJOR)


@pytest.mark.parametrize(
    ("level", "text"), [(Level.MAJOR, "1.0.0"), (Level.PATCH, "1.0.0"), (Level.PRERELEASE, "1.0.0-rc.1")]
)
def test_a_model_begins_with_1_0_0(level: Level, text: str):
    assert str(first(level)) == text


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("^1.2", ["1.2.0", "1.9.9"], ["1.1.9", "2.0.0", "2.0.0-rc.1", "1.3.0-rc.1"]),
        ("^1.2.3", ["1.2.3", "1.3.0"], ["1.2.2", "2.0.0"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.3.0", "1.0.0"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4", "0.0.2"]),
        ("^0.0", ["0.0.0", "0.0.9"], ["0.1.0"]),
        ("^0", ["0.0.1", "0.9.0"], ["1.0.0"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.3.0", "1.2.2"]),
        ("~1.2", ["1.2.0", "1.2.9"], ["1.3.0"]),
        ("~1", ["1.0.0", "1.9.0"], ["2.0.0"]),
        (">=1.2,<2", ["1.2.0", "1.99.0"], ["1.1.0", "2.0.0", "2.0.0-rc.1"]),
        (">= 1.2 , < 2", ["1.2.0"], ["2.0.0"]),
        (">1.2", ["1.3.0"], ["1.2.0", "1.2.9"]),
        (">1.2.3", ["1.2.4"], ["1.2.3"]),
        ("<=1.2", ["1.2.9", "0.1.0"], ["1.3.0"]),
        ("<=1.2.3", ["1.2.3"], ["1.2.4"]),
        ("<1.2.3", ["1.2.2"], ["1.2.3"]),
        ("=1.2", ["1.2.0", "1.2.5"], ["1.3.0", "1.1.0"]),
        ("=1.2.3", ["1.2.3", "1.2.3+build"], ["1.2.4"]),
        (">=1.2.0-rc.1,<2", ["1.2.0-rc.1", "1.2.0", "1.3.0-beta.1"], ["1.2.0-beta.9", "2.0.0-rc.1"]),
        ("*", ["0.0.0", "999.0.0"], ["1.0.0-rc.1"]),
    ],
)  # fmt: skip
def test_ranges(text: str, inside: list[str], outside: list[str]):
    wanted = parse_range("version", text)

    assert [version for version in [*inside, *outside] if wanted.holds(Version.parse(version))] == inside


@pytest.mark.parametrize(
    "text", ["^", "^x", ">=1.2 <2", "1.2", "^01.2", "^1.2,", ">=1.2,<", "=>1", "^1.2.3.4", "^1\0"]
)
def test_what_is_no_range_is_refused_by_name(text: str):
    with pytest.raises(InvalidArgument) as refused:
        parse_range("filter", text)

    assert [field for field, _ in refused.value.violations] == ["filter"]


def test_ascending_is_strict():
    parsed = [Version.parse(text) for text in ASCENDING]

    assert all(a < b for a, b in pairwise(parsed))
