"""What the Registry must do, in plain Python and in memory: the state machine holds the server against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import grpc

from neuroweaver.v1 import registry_pb2 as pb

DRAFT, TRAINED, VALIDATED = pb.VERSION_STATE_DRAFT, pb.VERSION_STATE_TRAINED, pb.VERSION_STATE_VALIDATED
DEPLOYED, DEPRECATED, ARCHIVED = (
    pb.VERSION_STATE_DEPLOYED,
    pb.VERSION_STATE_DEPRECATED,
    pb.VERSION_STATE_ARCHIVED,
)

NEXT: Final = {
    DRAFT: {TRAINED, ARCHIVED},
    TRAINED: {VALIDATED, DEPRECATED, ARCHIVED},
    VALIDATED: {DEPLOYED, DEPRECATED, ARCHIVED},
    DEPLOYED: {VALIDATED, DEPRECATED},
    DEPRECATED: {VALIDATED, ARCHIVED},
    ARCHIVED: {DEPRECATED},
}


class Refused(Exception):
    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(f"{code.name} {reason}")
        self.code = code
        self.reason = reason


def not_found() -> Refused:
    return Refused(grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


def aborted(reason: str) -> Refused:
    return Refused(grpc.StatusCode.ABORTED, reason)


def failed(reason: str) -> Refused:
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, reason)


def invalid() -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


def already_exists() -> Refused:
    return Refused(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")


@dataclass(frozen=True, order=True)
class Number:
    """A semantic version of the form 1.2.3 or 1.2.3-rc.4; they sort by precedence."""

    major: int
    minor: int
    patch: int
    is_release: bool = True
    label: str = ""
    count: int = 0

    def __str__(self) -> str:
        core = f"{self.major}.{self.minor}.{self.patch}"
        return core if self.is_release else f"{core}-{self.label}.{self.count}"

    @classmethod
    def of(cls, text: str) -> Number:
        core, _, prerelease = text.partition("-")
        label, _, count = prerelease.partition(".")
        return cls(*map(int, core.split(".")), not prerelease, label, int(count or 0))

    def candidate(self, label: str, count: int = 1) -> Number:
        return replace(self, is_release=False, label=label, count=count)

    def raised(self, level: int, label: str) -> Number:
        core = Number(self.major, self.minor, self.patch)
        match level:
            case pb.BUMP_LEVEL_MAJOR:
                done = not self.is_release and self.minor == self.patch == 0
                return core if done else Number(self.major + 1, 0, 0)
            case pb.BUMP_LEVEL_MINOR:
                done = not self.is_release and self.patch == 0
                return core if done else Number(self.major, self.minor + 1, 0)
            case pb.BUMP_LEVEL_PATCH:
                return core if not self.is_release else replace(core, patch=self.patch + 1)
        if self.is_release or label < self.label:
            return replace(core, patch=self.patch + 1).candidate(label)
        return core.candidate(label, self.count + 1 if label == self.label else 1)

    def shares_line(self, other: Number, level: int) -> bool:
        """Whether raising by the level counts through both."""
        parts: dict[int, Callable[[Number], Any]] = {
            pb.BUMP_LEVEL_MAJOR: lambda _: None,
            pb.BUMP_LEVEL_MINOR: lambda number: number.major,
            pb.BUMP_LEVEL_PATCH: lambda number: (number.major, number.minor),
            pb.BUMP_LEVEL_PRERELEASE: lambda number: replace(number, count=0),
        }
        return bool(parts[level](self) == parts[level](other))


RANGES: Final[Mapping[str, Callable[[Number], bool]]] = {
    "*": lambda number: number.is_release,
    "^1": lambda number: number.is_release and number.major == 1,
    "~1.1": lambda number: number.is_release and (number.major, number.minor) == (1, 1),
    ">=1.1,<2": lambda number: number.is_release and number.major == 1 and number.minor >= 1,
    ">=1.0.1-rc.1": lambda number: number >= Number(1, 0, 1).candidate("rc"),
    "<1.0.0": lambda number: number.is_release and number < Number(1, 0, 0),
}


@dataclass
class Version:
    number: Number
    made: int
    """Counts the versions in the order of their making."""
    state: int
    has_file: bool
    tags: dict[str, str]
    config: dict[str, Any]
    parent: str
    description: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    is_hidden: bool = False
    etag: str = ""


@dataclass
class Model:
    tags: dict[str, str]
    description: str = ""
    is_hidden: bool = False
    etag: str = ""
    versions: dict[Number, Version] = field(default_factory=dict)
    aliases: dict[str, tuple[Number, bool]] = field(default_factory=dict)
    """Where each points, and whether it is protected."""

    def shown(self) -> list[Version]:
        """Ascending."""
        return [
            self.versions[number] for number in sorted(self.versions) if not self.versions[number].is_hidden
        ]

    def latest(self) -> Version | None:
        return self.shown()[-1] if self.shown() else None

    def pointing_at(self, number: Number) -> list[str]:
        return sorted(alias for alias, (at, _) in self.aliases.items() if at == number)

    def next_number(self, level: int, base: Version | None, label: str) -> Number:
        """The first after `base` that is not taken; hidden ones are."""
        first = Number(1, 0, 0)
        number = base.number.raised(level, label) if base else first
        if not base and level == pb.BUMP_LEVEL_PRERELEASE:
            number = first.candidate(label)
        while number in self.versions:
            line = [taken for taken in self.versions if taken >= number and taken.shares_line(number, level)]
            number = max(line).raised(level, label)
        return number


@dataclass(frozen=True)
class Event:
    sequence: int
    action: str
    model_id: str
    version: str = ""


Moment = tuple[datetime, dict[tuple[str, str], Number]]


class Oracle:
    """Each operation gives what it made or changed, or raises Refused and changes nothing."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.events: list[Event] = []
        self.moments: list[Moment] = []
        self.made = 0

    def remember(self, moment: datetime) -> None:
        """What the aliases point at in a moment after the last change and before the next one, if it is news."""
        now = {
            (model_id, alias): number
            for model_id, model in self.models.items()
            for alias, (number, _) in model.aliases.items()
        }
        if not self.moments or self.moments[-1][1] != now:
            self.moments.append((moment, now))

    def model(self, model_id: str, *, show_hidden: bool = False) -> Model:
        model = self.models.get(model_id)
        if model is None or (model.is_hidden and not show_hidden):
            raise not_found()
        return model

    def version(self, model_id: str, number: Number) -> Version:
        version = self.model(model_id).versions.get(number)
        if version is None or version.is_hidden:
            raise not_found()
        return version

    def selected(self, model_id: str, selector: str) -> Version:
        model = self.model(model_id)
        if selector.startswith("@"):
            if selector[1:] not in model.aliases:
                raise not_found()
            return model.versions[model.aliases[selector[1:]][0]]
        if selector == "latest":
            found = model.shown()
        elif selector in RANGES:
            found = [version for version in model.shown() if RANGES[selector](version.number)]
        else:
            return self.version(model_id, Number.of(selector))
        if not found:
            raise not_found()
        return found[-1]

    def register(self, model_id: str, tags: dict[str, str], *, allow_existing: bool) -> Model:
        known = self.models.get(model_id)
        if known and allow_existing and not known.is_hidden:
            return known
        if known:
            raise already_exists()
        model = self.models[model_id] = Model(tags)
        model.etag = self._happened("model.registered", model_id)
        return model

    def update_model(self, model_id: str, changes: Mapping[str, Any], etag: str) -> Model:
        model = self.model(model_id)
        _check_etag(etag, model.etag)
        for name, value in changes.items():
            setattr(model, name, value)
        model.etag = self._happened("model.updated", model_id)
        return model

    def delete_model(self, model_id: str) -> Model:
        model = self.model(model_id)
        if model.aliases:
            raise failed("ALIAS_POINTS_HERE")
        if any(version.state == DEPLOYED for version in model.shown()):
            raise failed("DEPLOYED")
        model.is_hidden = True
        model.etag = self._happened("model.deleted", model_id)
        return model

    def undelete_model(self, model_id: str) -> Model:
        model = self.model(model_id, show_hidden=True)
        if model.is_hidden:
            model.is_hidden = False
            model.etag = self._happened("model.undeleted", model_id)
        return model

    def create(
        self,
        model_id: str,
        number: Number | None,
        level: int,
        parent: Number | None,
        *,
        has_file: bool,
        state: int,
        tags: dict[str, str],
        config: dict[str, Any],
    ) -> Version:
        if state not in {0, DRAFT, TRAINED, VALIDATED} or (state not in {0, DRAFT} and not has_file):
            raise invalid()
        model = self.model(model_id)
        base = self.version(model_id, parent) if parent else None
        number = number or model.next_number(level or pb.BUMP_LEVEL_MINOR, model.latest(), "rc")
        if number in model.versions:
            raise already_exists()
        made = Version(
            number=number,
            made=self._count(),
            state=state or (TRAINED if has_file else DRAFT),
            has_file=has_file,
            tags={**base.tags, **tags} if base else tags,
            config={**base.config, **config} if base else config,
            parent=str(base.number) if base else "",
        )
        return self._add("version.created", model_id, made)

    def bump(self, model_id: str, level: int, label: str, base: Number | None, description: str) -> Version:
        model = self.model(model_id)
        parent = self.version(model_id, base) if base else model.latest()
        made = Version(
            number=model.next_number(level, parent, label or "rc"),
            made=self._count(),
            state=DRAFT,
            has_file=False,
            tags=dict(parent.tags) if parent else {},
            config=dict(parent.config) if parent else {},
            parent=str(parent.number) if parent else "",
            description=description,
        )
        return self._add("version.created", model_id, made)

    def rollback(self, model_id: str, to: Number, reason: str, level: int, *, dry_run: bool) -> Version:
        """level: what a comparison of the latest version with the other recommends, where there is a choice."""
        target, latest = self.version(model_id, to), self.model(model_id).latest()
        if latest is None or latest.number == to:
            raise failed("ALREADY_LATEST")
        if not latest.number.is_release:
            level = pb.BUMP_LEVEL_PRERELEASE
        passed = VALIDATED if target.state in {VALIDATED, DEPLOYED} else TRAINED
        made = replace(
            target,
            number=self.models[model_id].next_number(
                level or pb.BUMP_LEVEL_PATCH, latest, latest.number.label or "rc"
            ),
            made=self._count(),
            state=passed if target.has_file else DRAFT,
            tags=dict(target.tags),
            config=dict(target.config),
            metrics=dict(target.metrics),
            parent=str(to),
            description=f"rollback to {to}" + (f": {reason}" if reason else ""),
            etag="",
        )
        return made if dry_run else self._add("version.rolled_back", model_id, made)

    def move(self, model_id: str, number: Number, state: int, etag: str) -> Version:
        version = self.version(model_id, number)
        _check_etag(etag, version.etag)
        if state not in NEXT[version.state]:
            raise failed("NO_SUCH_TRANSITION")
        if state in {TRAINED, VALIDATED, DEPLOYED} and not version.has_file:
            raise failed("NO_ARTIFACTS")
        if state == ARCHIVED and self.models[model_id].pointing_at(number):
            raise failed("ALIAS_POINTS_HERE")
        version.state = state
        version.etag = self._happened("version.state_changed", model_id, str(number))
        return version

    def measure(self, model_id: str, number: Number, metrics: Mapping[str, float]) -> Version:
        version = self.version(model_id, number)
        version.metrics |= metrics
        version.etag = self._happened("version.measured", model_id, str(number))
        return version

    def delete_version(self, model_id: str, number: Number, etag: str) -> Version:
        version = self.version(model_id, number)
        _check_etag(etag, version.etag)
        if self.models[model_id].pointing_at(number):
            raise failed("ALIAS_POINTS_HERE")
        if version.state == DEPLOYED:
            raise failed("DEPLOYED")
        version.is_hidden = True
        version.etag = self._happened("version.deleted", model_id, str(number))
        return version

    def undelete_version(self, model_id: str, number: Number, etag: str) -> Version:
        version = self.model(model_id).versions.get(number)
        if version is None:
            raise not_found()
        _check_etag(etag, version.etag)
        if version.is_hidden:
            version.is_hidden = False
            version.etag = self._happened("version.undeleted", model_id, str(number))
        return version

    def set_alias(
        self, model_id: str, alias: str, number: Number, expected: str, *, is_protected: bool | None
    ) -> tuple[Number, bool]:
        version, model = self.version(model_id, number), self.model(model_id)
        self._check_expected(model, alias, expected)
        at, protected = model.aliases.get(alias, (None, alias == "production"))
        wanted = protected if is_protected is None else is_protected
        if wanted and version.state not in {VALIDATED, DEPLOYED}:
            raise failed("QUALITY_GATE")
        if (at, protected) != (number, wanted):
            model.aliases[alias] = (number, wanted)
            self._happened("alias.set", model_id, str(number))
        return number, wanted

    def delete_alias(self, model_id: str, alias: str, expected: str) -> tuple[Number, bool]:
        model = self.model(model_id)
        if alias not in model.aliases:
            raise not_found()
        self._check_expected(model, alias, expected)
        self._happened("alias.deleted", model_id, str(model.aliases[alias][0]))
        return model.aliases.pop(alias)

    def resolve(self, model_id: str, alias: str, moment: Moment | None) -> Number:
        if moment is None:
            return self.selected(model_id, f"@{alias}").number
        self.model(model_id, show_hidden=True)
        if (model_id, alias) not in moment[1]:
            raise not_found()
        return moment[1][model_id, alias]

    def _check_expected(self, model: Model, alias: str, expected: str) -> None:
        at = model.aliases.get(alias)
        if expected and expected != (str(at[0]) if at else "-"):
            raise aborted("ALIAS_MOVED")

    def _add(self, action: str, model_id: str, version: Version) -> Version:
        self.models[model_id].versions[version.number] = version
        version.etag = self._happened(action, model_id, str(version.number))
        return version

    def _count(self) -> int:
        self.made += 1
        return self.made

    def _happened(self, action: str, model_id: str, version: str = "") -> str:
        self.events.append(Event(len(self.events) + 1, action, model_id, version))
        return str(len(self.events))


def _check_etag(given: str, current: str) -> None:
    if given and given != current:
        raise aborted("ETAG_MISMATCH")
