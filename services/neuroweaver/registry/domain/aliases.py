"""Aliases: names that point at a version of a model, and who may move them where."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from semver import Version

from neuroweaver.mesh.auth.caller import Caller
from neuroweaver.mesh.wire.errors import Aborted, FailedPrecondition, InvalidArgument
from neuroweaver.registry.domain.model import ModelVersion, State
from neuroweaver.registry.domain.versions import parse, precedence

NOWHERE: Final = "-"
"""What a caller expects of an alias that is not there."""

_ALIAS: Final = re.compile(r"[a-z][a-z0-9-]{0,62}", re.ASCII)

RELEASE: Final = "models.release"
"""The permission that moving a protected alias takes."""

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

    @property
    def name(self) -> str:
        return f"{self.model_id}@{self.alias}"


def check_alias(field: str, alias: str) -> None:
    """Raises InvalidArgument naming `field`."""
    if _ALIAS.fullmatch(alias) is None:
        raise InvalidArgument(
            field, "is not an alias: a letter, then lower-case letters, digits and -, at most 63"
        )
    if alias == RESERVED:
        raise InvalidArgument(field, "latest always names the highest version and cannot be an alias")


def moved(
    current: Alias | None,
    alias: str,
    version: ModelVersion,
    *,
    expected: str = "",
    protected: bool | None = None,
    caller: Caller,
    now: datetime,
) -> Alias:
    """The alias pointing at a version; `current` itself if it does so already.

    expected: where the caller believes that it points, NOWHERE or empty for anywhere. protected: from now on;
    None: as it is. Raises Aborted if it points elsewhere, PermissionDenied, FailedPrecondition for a version
    that may not stand behind a protected alias, InvalidArgument naming `expected_version`.
    """
    name = f"{version.model_id}@{alias}"
    _check_expected(name, current, expected)
    was_protected = current.is_protected if current else alias in PROTECTED_BY_DEFAULT
    is_protected = was_protected if protected is None else protected
    if was_protected or is_protected:
        caller.require(RELEASE, f"moving the protected alias {name}")
    if is_protected:
        _check_gate(version, name)
    if current and current.version == version.version and current.is_protected == is_protected:
        return current
    return Alias(
        model_id=version.model_id,
        alias=alias,
        version=version.version,
        is_protected=is_protected,
        actor=caller.actor,
        update_time=now,
    )


def removed(current: Alias, *, expected: str = "", caller: Caller, now: datetime) -> Alias:
    """The alias pointing nowhere. Raises Aborted, PermissionDenied and InvalidArgument as `moved`."""
    _check_expected(current.name, current, expected)
    if current.is_protected:
        caller.require(RELEASE, f"removing the protected alias {current.name}")
    return replace(current, version=None, actor=caller.actor, update_time=now)


def _check_expected(name: str, current: Alias | None, expected: str) -> None:
    if not expected:
        return
    wanted = None if expected == NOWHERE else precedence(parse("expected_version", expected))
    version = current.version if current else None
    if wanted != (precedence(version) if version else None):
        where = f"points at {version}" if version else "does not exist"
        raise Aborted("ALIAS_MOVED", f"{name} {where}; expected_version says {expected}")


def _check_gate(version: ModelVersion, name: str) -> None:
    if version.state not in _PASSED_THE_GATE:
        raise FailedPrecondition(
            "QUALITY_GATE",
            f"{name} is protected and takes only a version that passed its quality gate (VALIDATED or "
            f"DEPLOYED); {version.name} is {version.state}",
            version.name,
        )
