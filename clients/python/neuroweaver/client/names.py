"""Enums as people say them. A value newer than this client goes by its number."""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor import EnumDescriptor
from rich.text import Text

from neuroweaver.v1 import registry_pb2 as registry

_STYLES: Final = {
    "DRAFT": "dim",
    "TRAINED": "cyan",
    "VALIDATED": "green",
    "DEPLOYED": "bold green",
    "DEPRECATED": "yellow",
    "ARCHIVED": "dim",
    "PENDING": "cyan",
    "DELIVERED": "green",
    "DEAD": "red",
}


def version_state(state: int) -> str:
    """VALIDATED for VERSION_STATE_VALIDATED."""
    return short_name(registry.VersionState.DESCRIPTOR, state)


def delivery_state(state: int) -> str:
    """DEAD for DELIVERY_STATE_DEAD."""
    return short_name(registry.DeliveryState.DESCRIPTOR, state)


def bump_level(level: int) -> str:
    """The level as `minor` for BUMP_LEVEL_MINOR; empty where no new version is called for."""
    return short_name(registry.BumpLevel.DESCRIPTOR, level).lower() if level else ""


def styled(state: str) -> Text:
    return Text(state, _STYLES.get(state, ""))


def short_name(enum: EnumDescriptor, number: int) -> str:
    """The value's name without the enum's in front."""
    known = enum.values_by_number.get(number)
    return (
        known.name.removeprefix(enum.values_by_number[0].name.removesuffix("UNSPECIFIED"))
        if known
        else str(number)
    )
