"""Numbers, times, enums and texts from elsewhere in a form for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor

_KEPT: Final = frozenset("\n\t")


def plain(text: str) -> str:
    """The text without control characters: what a model or a caller wrote must not steer the terminal."""
    return "".join(
        char if char.isprintable() or char in _KEPT else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def duration(seconds: float) -> str:
    """8.4 s, 3 min 07 s, 1 h 02 min."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def number(value: float) -> str:
    """Three significant digits; whole numbers from 100 on."""
    if 100 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def enum_name(enum: EnumDescriptor, number: int) -> str:
    """The value's name without the enum's in front; the number itself for a value newer than this client."""
    value = enum.values_by_number.get(number)
    return value.name.removeprefix(enum_prefix(enum)) if value else str(number)


def enum_prefix(enum: EnumDescriptor) -> str:
    """What the names of its values begin with: QUANTIZATION_ for QUANTIZATION_NF4."""
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")


def enum_choices(enum: EnumDescriptor) -> list[str]:
    """The short names of its values: nf4 for QUANTIZATION_NF4."""
    return [value.name.removeprefix(enum_prefix(enum)).lower() for value in enum.values if value.number]
