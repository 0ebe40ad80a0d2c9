from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from semver import Version
from sqlalchemy import event, insert, text

from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.pagination import Key, Page
from neuroweaver.mesh.handlers import filters
from neuroweaver.registry.domain import records
from neuroweaver.registry.domain.model import Model, ModelVersion, State
from neuroweaver.registry.domain.versions import parse_range, precedence
from neuroweaver.registry.storage import listing, tables
from neuroweaver.registry.storage.listing import TAGS
from neuroweaver.registry.storage.reader import Reader
from neuroweaver.registry.storage.store import Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TERMS = ("state", "range", TAGS)
ORDERS = ("version desc", "version", "create_time desc")
FILTERS = (
    "",
    "state=VALIDATED",
    "state=DEPLOYED",
    "range=^1.2",
    "range=>=1.1,<1.4",
    "range=>=1.1.0-rc.1,<1.4",
    "range=^1 AND range=<1.3 AND range=>=1.1",
    "tags.team=service",
    "tags.golden=yes",
    "tags.golden=no",
    "tags.team=service AND range=^1.2",
    "tags.team=service AND tags.golden=yes",
    "tags.team=service AND tags.team=sales",
    "state=VALIDATED AND tags.team=service",
    "state=DEPLOYED AND tags.team=service",
    "state=TRAINED AND tags.golden=yes AND range=^1.1",
    "state=TRAINED AND state=VALIDATED",
)


def versions_of(count: int) -> list[ModelVersion]:
    """In no order: prereleases, hidden ones, common and rare states and tags; times that several share."""
    chance = random.Random(7)
    numbers = [
        Version(1, index // 20, index % 20, prerelease=None if chance.random() < 0.7 else f"rc.{index}")
        for index in range(count)
    ]
    found = []
    for number in chance.sample(numbers, count):
        state = chance.choices([State.TRAINED, State.VALIDATED, State.DEPLOYED], [8, 4, 1])[0]
        tags = {"team": chance.choice(["service", "sales"])}
        if chance.random() < 0.1:
            tags["golden"] = "yes"
        made = NOW + timedelta(seconds=chance.randrange(count // 2))
        found.append(
            ModelVersion(
                model_id="advisor",
                version=number,
                state=state,
                tags=tags,
                create_time=made,
                update_time=made,
                delete_time=made if chance.random() < 0.1 else None,
            )
        )
    return found


async def fill(database: Database, versions: list[ModelVersion], models: list[Model]) -> None:
    """Straight into the tables: lists need no history."""
    model_rows, version_rows, tag_rows = [], [], []
    for model in models:
        key = {"project": "default", "model_id": model.model_id}
        model_rows.append({**key, "delete_time": model.delete_time, "record": records.dump(model)})
        tag_rows += [{**key, "precedence": "", "name": name, "value": to} for name, to in model.tags.items()]
    for version in versions:
        place = precedence(version.version)
        key = {"project": "default", "model_id": version.model_id, "precedence": place}
        values = {
            "version": str(version.version),
            "is_prerelease": version.version.prerelease is not None,
            "state": version.state.value,
            "create_time": version.create_time,
            "delete_time": version.delete_time,
            "record": records.dump(version),
        }
        version_rows.append(key | values)
        tag_rows += [{**key, "name": name, "value": to} for name, to in version.tags.items()]
    async with database.write() as connection:
        for table, rows in (
            (tables.models, model_rows),
            (tables.versions, version_rows),
            (tables.tags, tag_rows),
        ):
            await connection.execute(insert(table), rows)


def model_of(model_id: str, **fields: Any) -> Model:
    return Model(model_id=model_id, create_time=NOW, update_time=NOW, **fields)


def holds(version: ModelVersion, term: filters.Term) -> bool:
    name, value = term
    if name == "state":
        return version.state.value == value
    if name == "range":
        return parse_range("filter", value).holds(version.version)
    return version.tags.get(name.removeprefix(TAGS)) == value


def expected(versions: list[ModelVersion], terms: Any, order_by: str, *, show_deleted: bool) -> list[str]:
    shown = [
        version
        for version in versions
        if (show_deleted or not version.delete_time) and all(holds(version, term) for term in terms)
    ]
    shown.sort(key=lambda version: precedence(version.version), reverse=order_by != "version")
    if order_by == "create_time desc":
        shown.sort(key=lambda version: (version.create_time, precedence(version.version)), reverse=True)
    return [str(version.version) for version in shown]


async def listed(store: Store, terms: Any, order_by: str, *, show_deleted: bool, size: int = 13) -> list[str]:
    """Page by page."""
    found: list[str] = []
    token = ""
    while True:
        page = Page.of(size, token, query=("test",))
        async with store.read("default") as reader:
            versions, token = await reader.versions(
                "advisor", page, order_by=order_by, terms=terms, show_deleted=show_deleted
            )
        found += [str(version.version) for version in versions]
        if not token:
            return found


@pytest.mark.parametrize("few", [1, 12, 1000])
async def test_pages_have_what_the_filter_says_in_the_order_asked_for(database, store, monkeypatch, few):
    """Whichever of the terms drives."""
    monkeypatch.setattr(listing, "FEW", few)
    versions = versions_of(120)
    await fill(database, versions, [model_of("advisor"), model_of("other")])
    for filter_ in FILTERS:
        terms = filters.parse(filter_, TERMS)
        for order_by in ORDERS:
            for show_deleted in (False, True):
                found = await listed(store, terms, order_by, show_deleted=show_deleted)
                assert found == expected(versions, terms, order_by, show_deleted=show_deleted), (
                    filter_,
                    order_by,
                )


async def test_models_are_listed_by_their_own_tags(database, store):
    chance = random.Random(3)
    models = [
        model_of(
            f"m{index:03}",
            tags={
                "team": chance.choice(["service", "sales"]),
                "golden": chance.choice(["yes", "no", "no", "no"]),
            },
            delete_time=NOW if index % 10 == 0 else None,
        )
        for index in range(60)
    ]
    # Versions with a tag make no model one that has it.
    version = replace(versions_of(20)[0], model_id="m001", tags={"team": "nobody's"})
    await fill(database, [version], models)

    for filter_ in ("", "tags.team=service", "tags.team=service AND tags.golden=yes", "tags.team=nobody's"):
        terms = filters.parse(filter_, (TAGS,))
        for show_deleted in (False, True):
            found: list[str] = []
            token = "start"
            while token:
                page = Page.of(7, token.removeprefix("start"), query=("test",))
                async with store.read("default") as reader:
                    shown, token = await reader.models(page, terms, show_deleted=show_deleted)
                found += [model.model_id for model in shown]
            assert found == [
                model.model_id
                for model in models
                if (show_deleted or not model.delete_time)
                and all(model.tags.get(name.removeprefix(TAGS)) == value for name, value in terms)
            ], filter_


# Plans


@dataclass
class Planned:
    """The statements of lists, and how the database goes about them."""

    database: Database
    store: Store

    async def versions(
        self, filter_: str, order_by: str = "version desc", after: Key | None = None
    ) -> list[str]:
        terms = filters.parse(filter_, TERMS)
        async with self._planned() as (reader, plan):
            await reader.versions("advisor", Page(50, after, ("test",)), order_by=order_by, terms=terms)
        return plan

    async def models(self, filter_: str) -> list[str]:
        async with self._planned() as (reader, plan):
            await reader.models(Page(50, None, ("test",)), filters.parse(filter_, (TAGS,)))
        return plan

    async def selected(self, selector: str) -> list[str]:
        async with self._planned() as (reader, plan):
            await reader.selected("advisor", selector)
        return plan

    @asynccontextmanager
    async def _planned(self) -> AsyncIterator[tuple[Reader, list[str]]]:
        """At its end the plan of what was read, as it was planned there."""
        plan: list[str] = []
        with self.recorded() as statements:
            async with self.store.read("default") as reader:
                yield reader, plan
        async with self.database.read() as connection:
            if not self.database.is_sqlite:
                # As if the tables were large.
                await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
                await connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
            explain = "EXPLAIN QUERY PLAN" if self.database.is_sqlite else "EXPLAIN"
            for statement, parameters in statements:
                if "set_config" in statement:
                    await connection.exec_driver_sql(statement, parameters)
                    continue
                rows = await connection.exec_driver_sql(f"{explain} {statement}", parameters)
                plan += [row[-1] for row in rows]

    @contextmanager
    def recorded(self) -> Iterator[list[tuple[str, Any]]]:
        statements: list[tuple[str, Any]] = []

        def record(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            if statement.startswith("SELECT"):
                statements.append((statement, parameters))

        engine = self.database._reader.sync_engine
        event.listen(engine, "before_cursor_execute", record)
        try:
            yield statements
        finally:
            event.remove(engine, "before_cursor_execute", record)


@pytest.fixture
async def planned(database: Database, store: Store) -> Planned:
    others = [model_of(f"m{index}", tags={"team": "service", "golden": "yes"}) for index in range(300)]
    await fill(database, versions_of(1000), [model_of("advisor", tags={"team": "service"}), *others])
    if not database.is_sqlite:
        async with database.write() as connection:
            await connection.execute(text("ANALYZE"))
    return Planned(database, store)


def is_sought(plan: list[str]) -> bool:
    """No table is read from end to end, nothing is sorted."""
    faults = r"SCAN (versions|tags|models|alias_spans)|TEMP B-TREE|AUTOMATIC|Seq Scan|Sort|Hash|Materialize|Join Filter"
    return not any(re.search(faults, line) for line in plan)


PLANS = (
    ("", "version desc", "versions (project=? AND model_id=?)"),
    ("", "create_time desc", "versions_by_time (project=? AND model_id=?)"),
    ("state=VALIDATED", "version desc", "versions_by_state (project=? AND model_id=? AND state=?)"),
    (
        "state=VALIDATED AND range=^1.2",
        "version",
        "model_id=? AND state=? AND precedence>? AND precedence<?)",
    ),
    ("tags.team=service", "version desc", "tags_by_value (project=? AND name=? AND value=? AND model_id=?)"),
    ("tags.golden=yes", "version", "tags_by_value (project=? AND name=? AND value=? AND model_id=?)"),
    (
        "tags.team=service AND range=^1.2",
        "version desc",
        "value=? AND model_id=? AND precedence>? AND precedence<?)",
    ),
    (
        "tags.golden=yes AND tags.team=service",
        "version desc",
        "tags_by_value (project=? AND name=? AND value=?",
    ),
    (
        "state=DEPLOYED AND tags.team=service",
        "version desc",
        "versions_by_state (project=? AND model_id=? AND state=?)",
    ),
    ("state=TRAINED AND tags.golden=yes", "version desc", "tags_by_value (project=? AND name=? AND value=?"),
)


@pytest.mark.parametrize("is_deep", [False, True])
async def test_a_page_is_sought_in_an_index_and_read_in_its_order(planned, is_deep):
    for filter_, order_by, index in PLANS:
        place = precedence(Version(1, 3, 0))
        after = (NOW, place) if order_by == "create_time desc" else (place,)
        plan = await planned.versions(filter_, order_by, after if is_deep else None)

        assert is_sought(plan), (filter_, plan)
        # PostgreSQL names its indexes in a plan too, and chooses among those that serve by its statistics.
        if planned.database.is_sqlite and not is_deep and filter_ + order_by != "version desc":
            assert any(index in line for line in plan), (filter_, plan)


async def test_a_page_of_a_range_begins_where_the_one_before_it_ended(planned):
    """And not at the range's own bound, from which it would have to be walked to."""
    for filter_ in ("range=^1.2", "tags.team=service AND range=^1.2", "state=TRAINED AND range=^1.2"):
        statements = []
        with planned.recorded() as recorded:
            async with planned.store.read("default") as reader:
                place = precedence(Version(1, 5, 0))
                page = Page(50, (place,), ("test",))
                await reader.versions("advisor", page, terms=filters.parse(filter_, TERMS))
            statements = [each for each in recorded if "alias_spans" in each[0]]
        (_, parameters), *_ = statements
        values = parameters.values() if isinstance(parameters, dict) else parameters
        assert place in values
        assert parse_range("filter", "^1.2").upper not in values


async def test_what_is_rare_is_sorted_by_time_and_what_is_not_is_looked_for_along_it(planned, monkeypatch):
    monkeypatch.setattr(listing, "FEW", 300)
    for rare in ("tags.golden=yes", "state=DEPLOYED", "range=~1.2"):
        plan = "\n".join(await planned.versions(rare, "create_time desc"))
        assert "versions_by_time" not in plan, (rare, plan)
    for common in ("tags.team=service", "state=TRAINED", "range=>=0.1.0-a", "range=^1"):
        plan = await planned.versions(common, "create_time desc")
        assert is_sought(plan), (common, plan)
        assert "versions_by_time" in "\n".join(plan), (common, plan)


async def test_models_with_a_tag_are_sought_among_the_tags_of_models(planned):
    """Not among those of all their versions."""
    for filter_ in ("tags.team=service", "tags.team=service AND tags.golden=yes"):
        plan = await planned.models(filter_)
        assert is_sought(plan), (filter_, plan)
        assert "tags_of_models" in "\n".join(plan), (filter_, plan)
    assert is_sought(await planned.models(""))


async def test_the_highest_release_is_found_below_any_number_of_prereleases(planned):
    plans = [await planned.selected("^1"), await planned.versions("range=^1.2")]
    for plan in plans:
        assert is_sought(plan), plan
        assert "versions_released" in "\n".join(plan), plan
