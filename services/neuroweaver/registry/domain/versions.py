"""Semantic versions (https://semver.org, 2.0.0): how they are read, ordered, raised and chosen by a range.

Two versions that differ in build metadata alone have the same precedence and count as the same version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from semver import Version

from neuroweaver.mesh.wire.errors import FailedPrecondition, InvalidArgument

MAX_LENGTH: Final = 128
# A number of 18 digits fits the 64-bit integers of every client; dates and build counters fit it.
MAX_DIGITS: Final = 18

FIRST: Final = Version(1, 0, 0)
DEFAULT_LABEL: Final = "rc"

_COMPARATOR: Final = re.compile(
    r"(?P<operator>\^|~|>=|<=|>|<|=)\s*"
    r"(?P<major>\d+)(?:\.(?P<minor>\d+)(?:\.(?P<patch>\d+)(?P<rest>[-+][0-9A-Za-z.+-]+)?)?)?",
    re.ASCII,
)
_RANGE_BEGINS: Final = tuple("^~<>=*")

# In keys: "!" sorts below every character of an identifier, "~" above.
_END: Final = "!"
_RELEASE: Final = "~"
_ABOVE_ALL: Final = "~"


class Level(StrEnum):
    MAJOR = "major"
    MINOR = "minor"
    PATCH = "patch"
    PRERELEASE = "prerelease"


def parse(field: str, text: str) -> Version:
    """The version that `text` spells. Raises InvalidArgument naming `field`."""
    try:
        version = Version.parse(text) if len(text) <= MAX_LENGTH else None
    except ValueError:
        version = None
    if version is None:
        raise InvalidArgument(
            field, "is not a semantic version such as 1.4.0 or 1.4.0-rc.1 (https://semver.org)"
        )
    if not _is_bounded(version):
        raise InvalidArgument(field, f"has a number of more than {MAX_DIGITS} digits")
    return version


def precedence(version: Version) -> str:
    """An ASCII key: keys sort by their bytes as versions do. No key is the beginning of another."""
    core = _core(version.major, version.minor, version.patch)
    if version.prerelease is None:
        return core + _RELEASE
    return core + "".join(_identifier(part) for part in version.prerelease.split(".")) + _END


def raised(version: Version, level: Level, label: str = DEFAULT_LABEL, build: str = "") -> Version:
    """The next version after `version`, always of higher precedence.

    A prerelease is finished before a further version is begun: a patch after 1.3.0-rc.2 is 1.3.0.
    Raises FailedPrecondition if there is no next version within the bounds.
    """
    following = version.next_version(level.value, label)
    following = following.replace(build=build or None)
    if not _is_bounded(following) or len(str(following)) > MAX_LENGTH:
        raise FailedPrecondition("VERSION_EXHAUSTED", f"{version} cannot be raised any further", str(version))
    return following


def first(level: Level, label: str = DEFAULT_LABEL, build: str = "") -> Version:
    """The version that a model begins with."""
    prerelease = f"{label}.1" if level is Level.PRERELEASE else None
    return FIRST.replace(prerelease=prerelease, build=build or None)


def line_end(version: Version, level: Level) -> str:
    """The key below which raising by `level`, beginning at `version`, counts through."""
    match level:
        case Level.MAJOR:
            return _ABOVE_ALL
        case Level.MINOR:
            return _core(version.major + 1)
        case Level.PATCH:
            return _core(version.major, version.minor + 1)
        case Level.PRERELEASE:
            labels = (version.prerelease or "").split(".")[:-1]
            core = _core(version.major, version.minor, version.patch)
            return core + "".join(map(_identifier, labels)) + _RELEASE


@dataclass(frozen=True)
class Range:
    """The versions whose key is in [lower, upper)."""

    lower: str
    upper: str
    with_prereleases: bool

    def holds(self, version: Version) -> bool:
        is_admitted = self.with_prereleases or version.prerelease is None
        return is_admitted and self.lower <= precedence(version) < self.upper


def is_range(text: str) -> bool:
    return text.strip().startswith(_RANGE_BEGINS)


def parse_range(field: str, text: str) -> Range:
    """`>=1.2,<2`, `^1.2`, `~1.2`, `=1.2`, `*`, with the meaning they have in npm and Cargo.

    Prereleases are in it only if one of its own versions is a prerelease. Raises InvalidArgument naming
    `field`.
    """
    lower, upper, with_prereleases = "", _ABOVE_ALL, False
    for term in text.split(","):
        if term.strip() == "*":
            continue
        match = _COMPARATOR.fullmatch(term.strip())
        if match is None:
            raise InvalidArgument(field, "is not a range such as ^1.2, ~1.2.3 or >=1.2,<2")
        given = [match[part] for part in ("major", "minor", "patch") if match[part] is not None]
        version = parse(field, ".".join(given + ["0"] * (3 - len(given))) + (match["rest"] or ""))
        low, high = _bounds(match["operator"], version, len(given))
        lower, upper = max(lower, low), min(upper, high)
        with_prereleases = with_prereleases or version.prerelease is not None
    return Range(lower, upper, with_prereleases)


def _bounds(operator: str, version: Version, parts: int) -> tuple[str, str]:
    """[lower, upper) of one comparator whose version was written with 1, 2 or 3 numbers."""
    numbers = (version.major, version.minor, version.patch)
    key = precedence(version)
    # What a partly written version stands for: 1.2 for everything from 1.2.0 to below 1.3.0.
    begin, end = (key, key + _END) if parts == 3 else (key, _after(numbers, parts))
    nonzero = next((place for place, number in enumerate(numbers[:parts]) if number), parts - 1)
    return {
        "^": (begin, _after(numbers, nonzero + 1)),
        "~": (begin, _after(numbers, min(parts, 2))),
        ">=": (begin, _ABOVE_ALL),
        ">": (end, _ABOVE_ALL),
        "<": ("", begin if parts == 3 else _core(*numbers)),
        "<=": ("", end),
        "=": (begin, end),
    }[operator]


def _after(numbers: tuple[int, int, int], parts: int) -> str:
    """Below every version, and prerelease, of the next number in place `parts`."""
    return _core(*numbers[: parts - 1], numbers[parts - 1] + 1)


def _core(*numbers: int) -> str:
    """A key's beginning; with fewer than three numbers, below every key that begins with them."""
    padded = (*numbers, 0, 0)[:3]
    return "".join(f"{len(str(number)):02d}{number}" for number in padded)


def _identifier(part: str) -> str:
    """Numbers sort below words and by value, words by ASCII; fewer identifiers below more."""
    return f"0{len(part):03d}{part}" if part.isdecimal() else f"1{part}{_END}"


def _is_bounded(version: Version) -> bool:
    return max(version.major, version.minor, version.patch) < 10**MAX_DIGITS
