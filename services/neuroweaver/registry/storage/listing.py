"""From which index a list is read, so that a page costs the same however many records there are.

A model's versions in a state and a range lie together in one index, in the order of precedence; those with a
tag in another. One of the two drives: its rows come in the list's order as the page needs them, and each is
looked up by its key for the other terms. Of several the shortest drives, as a count tells that stops early.

By creation the order has one index, without the terms. What is rare is sorted instead; what is not rare is
looked for along that index. Hidden versions are passed by one at a time.

Statements leave the databases no choice: SQLite has no statistics, and PostgreSQL's plans for prepared
statements know no values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, func, literal_column, select, type_coerce

from neuroweaver.mesh.database.database import UtcDateTime
from neuroweaver.mesh.database.pagination import Key
from neuroweaver.mesh.handlers import filters
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.registry.domain.model import State
from neuroweaver.registry.domain.versions import Range, parse_range
from neuroweaver.registry.storage import tables

TAGS: Final = "tags."

# How far is counted, and the most that is sorted.
FEW: Final = 1000

# Written out: for a parameter the databases would not use the index that has the tags of models alone.
_OF_MODEL: Final[ColumnElement[str]] = literal_column("''")

Conditions = Sequence[ColumnElement[bool]]
Columns = Sequence[ColumnElement[Any]]


@dataclass(frozen=True)
class VersionList:
    """A model's versions, by precedence or, `by_time`, by creation."""

    project: str
    model_id: str
    by_time: bool
    states: Sequence[str] = ()
    tags: Sequence[filters.Term] = ()
    lower: str = ""
    upper: str | None = None
    """Places in the order of precedence, as a Range has them; None: without end."""
    with_prereleases: bool = True

    @classmethod
    def of(cls, project: str, model_id: str, terms: Iterable[filters.Term], *, by_time: bool) -> VersionList:
        """Raises InvalidArgument for an invalid range or state."""
        wanted = cls(project, model_id, by_time)
        for name, value in terms:
            if name == "range":
                wanted = wanted._within(parse_range("filter", value))
            elif name != "state":
                wanted = replace(wanted, tags=[*wanted.tags, (name, value)])
            elif value in State.__members__:
                wanted = replace(wanted, states=[*wanted.states, value])
            else:
                raise InvalidArgument("filter", f"names an unknown state; use {', '.join(State)}")
        return wanted

    def beyond(self, after: Key | None, *, descending: bool) -> VersionList:
        """What is left of it after the page that ends with this key.

        The page's own condition is not enough: of two bounds SQLite seeks by one, maybe by the wider one.
        """
        if after is None or self.by_time:
            return self
        place = str(after[0])
        return (
            self._within(Range("", place, True))
            if descending
            else replace(self, lower=max(self.lower, place))
        )

    def _within(self, wanted: Range) -> VersionList:
        return replace(
            self,
            lower=max(self.lower, wanted.lower),
            upper=wanted.upper if self.upper is None else min(self.upper, wanted.upper),
            with_prereleases=self.with_prereleases and wanted.with_prereleases,
        )

    def counts(self) -> Select[Any] | None:
        """How many rows each that may drive has, up to FEW; None where there is no choice."""
        drivers = self._drivers()
        if len(drivers) < (1 if self.by_time else 2):
            return None
        tags, versions = tables.tags, tables.versions
        return _counts(
            select(tags.c.precedence).where(*self._tagged(tags, tag)).order_by(tags.c.precedence)
            if tag
            else select(versions.c.precedence).where(*self._own()).order_by(versions.c.precedence)
            for tag in drivers
        )

    def is_sorted(self, counts: Sequence[int]) -> bool:
        """Whether the list comes from an index in another order than its own."""
        return self.by_time and min(counts, default=FEW) < FEW

    def ordered(self, base: Select[Any], counts: Sequence[int]) -> tuple[Select[Any], Columns]:
        """The list, and the columns that put it in order.

        base: selects from versions. counts: what `counts` gave, if anything.
        """
        if self.by_time and not self.is_sorted(counts):
            return self._along_time(base)
        table = tables.versions
        driver = _shortest(self._drivers(), counts)
        statement = base.where(*self._own(), *self._has_all(tag for tag in self.tags if tag is not driver))
        place: ColumnElement[Any] = table.c.precedence
        if driver:
            tags = tables.tags.alias()
            place = tags.c.precedence
            statement = statement.where(table.c.precedence == _apart(place), *self._tagged(tags, driver))
        if self.by_time:
            return statement, [_apart(table.c.create_time), table.c.precedence]
        return statement, [place]

    def _along_time(self, base: Select[Any]) -> tuple[Select[Any], Columns]:
        """Everything else is looked at where the index of the time leads."""
        table = tables.versions
        own = self._own(_apart(table.c.precedence), _apart(table.c.state))
        return base.where(*own, *self._has_all(self.tags)), [table.c.create_time, table.c.precedence]

    def _has_all(self, tags: Iterable[filters.Term]) -> Conditions:
        table = tables.versions
        return [_has(self.project, tag, table.c.model_id, table.c.precedence) for tag in tags]

    def _drivers(self) -> Sequence[filters.Term | None]:
        """What may drive: each tag, and None for the versions' own indexes where a term narrows them."""
        has_own = self.states or (self.by_time and self.upper is not None)
        return [*self.tags, *([None] if has_own else [])]

    def _own(
        self,
        place: ColumnElement[str] = tables.versions.c.precedence,
        state: ColumnElement[str] = tables.versions.c.state,
    ) -> Conditions:
        table = tables.versions
        return [
            table.c.project == self.project,
            table.c.model_id == self.model_id,
            *(state == wanted for wanted in self.states),
            *self._bounds(place),
            *([] if self.with_prereleases else [table.c.is_prerelease.is_(False)]),
        ]

    def _tagged(self, tags: Any, tag: filters.Term) -> Conditions:
        return [
            *_tag(tags, self.project, tag),
            tags.c.model_id == self.model_id,
            *self._bounds(tags.c.precedence),
        ]

    def _bounds(self, place: ColumnElement[str]) -> Conditions:
        lower = [place >= self.lower] if self.lower else []
        return [*lower, *([] if self.upper is None else [place < self.upper])]


@dataclass(frozen=True)
class ModelList:
    """A project's models with these tags, by id."""

    project: str
    tags: Sequence[filters.Term]

    def counts(self) -> Select[Any] | None:
        """As VersionList's."""
        if len(self.tags) < 2:
            return None
        tags = tables.tags
        return _counts(
            select(tags.c.model_id).where(*self._tagged(tags, tag)).order_by(tags.c.model_id)
            for tag in self.tags
        )

    def is_sorted(self, counts: Sequence[int]) -> bool:
        """As VersionList's."""
        del counts
        return False

    def ordered(self, base: Select[Any], counts: Sequence[int]) -> tuple[Select[Any], Columns]:
        """As VersionList's. base: selects from models."""
        table = tables.models
        driver = _shortest(self.tags, counts)
        others = (
            _has(self.project, tag, table.c.model_id, _OF_MODEL) for tag in self.tags if tag is not driver
        )
        statement = base.where(table.c.project == self.project, *others)
        if driver is None:
            return statement, [table.c.model_id]
        tags = tables.tags.alias()
        is_its = table.c.model_id == _apart(tags.c.model_id)
        return statement.where(is_its, *self._tagged(tags, driver)), [tags.c.model_id]

    def _tagged(self, tags: Any, tag: filters.Term) -> Conditions:
        return [*_tag(tags, self.project, tag), tags.c.precedence == _OF_MODEL]


def _tag(tags: Any, project: str, tag: filters.Term) -> Conditions:
    name, value = tag
    return [
        tags.c.project == project,
        tags.c.name == name.removeprefix(TAGS),
        tags.c.value == value,
    ]


def _has(
    project: str, tag: filters.Term, model_id: ColumnElement[str], place: ColumnElement[str]
) -> ColumnElement[bool]:
    """Looked up for one row at a time: as an EXISTS, PostgreSQL might let it drive."""
    name, value = tag
    tags = tables.tags.alias()
    value_there = select(tags.c.value).where(
        tags.c.project == project,
        tags.c.model_id == model_id,
        tags.c.precedence == place,
        tags.c.name == name.removeprefix(TAGS),
    )
    return value_there.scalar_subquery() == value


def _counts(drivers: Iterable[Select[Any]]) -> Select[Any]:
    """drivers: in the order of an index, since without one a few rows might be looked for everywhere."""
    limited = (driver.limit(FEW).subquery() for driver in drivers)
    return select(*(select(func.count()).select_from(rows).scalar_subquery() for rows in limited))


def _shortest(drivers: Sequence[filters.Term | None], counts: Sequence[int]) -> filters.Term | None:
    if not drivers:
        return None
    return drivers[counts.index(min(counts))] if counts else drivers[0]


def _apart(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """The same value, yet no index leads to it: so that the database begins at the other end."""
    if isinstance(column.type, UtcDateTime):
        return type_coerce(column.op("+")(literal_column("0")), UtcDateTime)
    return column.op("||")(literal_column("''"))
