from __future__ import annotations

import asyncio
import importlib
import sys
import uuid
from importlib import resources
from pathlib import Path

import pytest
from sqlalchemy import text

from neuroweaver.mesh.database import migrations
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import MigrationError, migrate

REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "{number}"
down_revision = {before}


def upgrade():
    {body}
"""

SERVICES = ("registry", "trainer", "deployer", "experiment")

FIRST = 'op.create_table("words", sa.Column("word", sa.String(20), primary_key=True))'
SECOND = 'op.add_column("words", sa.Column("count", sa.Integer, nullable=False, server_default="0"))'


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A service's package, with no migrations yet: `write(package, number, before, body)` adds one."""
    name = f"service_{uuid.uuid4().hex}"
    (tmp_path / name / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield name
    sys.modules.pop(name, None)


def write(package: str, number: str, before: str | None, body: str) -> None:
    folder = Path(importlib.import_module(package).__file__).parent / "migrations" / "versions"
    (folder / f"{number}_step.py").write_text(REVISION.format(number=number, before=repr(before), body=body))


@pytest.fixture
async def database(database_url):
    opened = Database(database_url, schema="words")
    yield opened
    await opened.close()


async def columns(database: Database) -> set[str]:
    async with database.read() as connection:
        return set((await connection.execute(text("SELECT * FROM words"))).keys())


async def test_the_revisions_that_are_missing_are_run_in_order(package, database):
    write(package, "0001", None, FIRST)
    await migrate(database, package)
    assert await columns(database) == {"word"}

    write(package, "0002", "0001", SECOND)
    await migrate(database, package)
    assert await columns(database) == {"word", "count"}


async def test_migrating_again_changes_nothing(package, database):
    write(package, "0001", None, FIRST)
    await migrate(database, package)
    async with database.write() as connection:
        await connection.execute(text("INSERT INTO words VALUES ('kept')"))

    await migrate(database, package)

    async with database.read() as connection:
        assert (await connection.execute(text("SELECT word FROM words"))).scalar_one() == "kept"


async def test_processes_that_start_together_migrate_once(package, database, database_url):
    write(package, "0001", None, FIRST)
    write(package, "0002", "0001", SECOND)
    others = [Database(database_url, schema="words") for _ in range(4)]

    await asyncio.gather(*(migrate(each, package) for each in (database, *others)))

    assert await columns(database) == {"word", "count"}
    for each in others:
        await each.close()


async def test_a_revision_that_fails_undoes_those_before_it(package, database):
    write(package, "0001", None, FIRST)
    write(package, "0002", "0001", 'raise LookupError("half done")')

    with pytest.raises(LookupError):
        await migrate(database, package)

    write(package, "0002", "0001", SECOND)
    await migrate(database, package)
    assert await columns(database) == {"word", "count"}


async def test_a_database_of_a_newer_version_is_refused(package, database):
    write(package, "0001", None, FIRST)
    await migrate(database, package)
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '0099'"))

    with pytest.raises(MigrationError, match="another version of NeuroWeaver"):
        await migrate(database, package)


@pytest.mark.parametrize("service", SERVICES)
def test_revisions_are_called_by_their_numbers_and_follow_each_other(service):
    """What `migrate` relies on to see without Alembic that there is nothing to do."""
    folder = resources.files(f"neuroweaver.{service}") / "migrations" / "versions"
    before = None
    for file in sorted(file.name for file in folder.iterdir() if file.name.endswith(".py")):
        text = (folder / file).read_text()
        assert f'revision = "{file[:4]}"' in text
        assert f"down_revision = {before!r}".replace("'", '"') in text
        before = file[:4]


async def test_a_database_that_is_up_to_date_needs_no_alembic(package, database, monkeypatch):
    write(package, "0001", None, FIRST)
    await migrate(database, package)
    monkeypatch.setattr(migrations, "_script", lambda _folder: pytest.fail("Alembic is asked"))
    await migrate(database, package)
