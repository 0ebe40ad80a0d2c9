"""Aliases: names that point at a version of a model, and who may move them where."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from semver import Version

from neuroweaver.mesh.errors import Aborted, FailedPrecondition, InvalidArgument
from neuroweaver.registry.model import ModelVersion, State
from neuroweaver.registry.versions import parse, precedence

NOWHERE: Final = "-"
"""What a caller expects of an alias that is not there."""

_ALIAS: Final = re.compile(r"[a-z][a-z0-9-]{0,62}", re.ASCII)

RESERVED: Final = "latest"
PROTECTED_BY_DEFAULT: Final = frozenset({"production"})

_PASSED_THE_GATE: Final = frozenset({State.VALIDATED, State.DEPLOYED})


@dataclass(frozen=True, kw_only=True)
class Alias:
    model_id: str
    alias: str
    version: Version | None
    """None once it is removed."""
    is_protected: bool
    actor: str
    """Who moved it."""
    update_time: datetime

    def removed(self, actor: str, now: datetime) -> Alias:
        return replace(self, version=None, actor=actor, update_time=now)


def check_alias(field: str, alias: str) -> None:
    """Raises InvalidArgument naming `field`."""
    if _ALIAS.fullmatch(alias) is None:
        raise InvalidArgument(
            field, "is not an alias: a letter, then lower-case letters, digits and -, at most 63"
        )
    if alias == RESERVED:
        raise InvalidArgument(field, "latest always names the highest version and cannot be an alias")


def check_expected(field: str, name: str, current: Alias | None, expected: str) -> None:
    """Raises Aborted unless the alias points where the caller believes. expected: empty: anywhere.

    name: of the alias. Raises InvalidArgument naming `field` if `expected` is no version.
    """
    if not expected:
        return
    wanted = None if expected == NOWHERE else precedence(parse(field, expected))
    found = current.version if current else None
    if wanted != (precedence(found) if found else None):
        where = f"points at {found}" if found else "is not there"
        raise Aborted("ALIAS_MOVED", f"{name} {where}; {field} says {expected}")


def protects(current: Alias | None, alias: str) -> bool:
    """Whether the alias is protected as it stands."""
    return current.is_protected if current else alias in PROTECTED_BY_DEFAULT


def check_gate(version: ModelVersion, name: str) -> None:
    """Raises FailedPrecondition unless the version may stand behind a protected alias."""
    if version.state not in _PASSED_THE_GATE:
        raise FailedPrecondition(
            "QUALITY_GATE",
            f"{name} is protected and takes only a version that passed its quality gate (VALIDATED or "
            f"DEPLOYED); {version.name} is {version.state}",
            version.name,
        )
