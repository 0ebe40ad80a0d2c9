"""Enum values as people say them, in their colours. A value newer than this client goes by its number."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.message import Message
from rich.text import Text

from neuroweaver.client.text import enum_name

_WORDS: Final = {
    "cyan": "TRAINED PENDING RUNNING PROGRESSING STARTING BAKING PROMOTING SCHEDULING PULLING LOADING "
    "WARMING",
    "green": "SUCCEEDED VALIDATED DELIVERED READY PROMOTED PASS HEALTHY CONCLUDED serving better",
    "yellow": "CANCELLED CANCELLING DEPRECATED DEGRADED DELETING DRAINING HELD HOLD PAUSED STOPPED",
    "red": "DEAD ROLLING_BACK ROLLED_BACK unavailable worse",
    "bold red": "FAILED FAIL CRASH_LOOP UNHEALTHY",
    "bold green": "DEPLOYED",
}
"""By their style; all others are dim."""
_STYLES: Final = {word: style for style, words in _WORDS.items() for word in words.split()}
LEVEL_STYLES: Final = {"WARNING": "yellow", "ERROR": "red", "DEBUG": "dim"}
"""Of log lines."""


def word(message: Message, field: str) -> str:
    """The value of an enum field: READY for DEPLOYMENT_STATE_READY."""
    enum: Any = message.DESCRIPTOR.fields_by_name[field].enum_type
    return enum_name(enum, getattr(message, field))


def spoken(message: Message, field: str) -> str:
    """The same in prose: `not targeted`."""
    return word(message, field).replace("_", " ").lower()


def styled(message: Message, field: str) -> Text:
    state = word(message, field)
    return Text(state, style_of(state))


def style_of(state: str) -> str:
    return _STYLES.get(state, "dim")
