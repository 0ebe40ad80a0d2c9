"""Brings a service's tables to the form its code expects.

A service's package holds `migrations/versions/0001_….py`, plain Alembic revisions in one line, each called by
its number. There is no alembic.ini and no env.py.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, inspect

from neuroweaver.mesh.database.database import Database

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

_STAMP = "alembic_version"


class MigrationError(Exception):
    """The database cannot be brought to this version's form. The message says why."""


async def migrate(database: Database, package: str) -> None:
    """Runs the revisions of `package` that the database lacks: all of them, or none.

    Processes that start together do it one after the other. Raises MigrationError if the database was written
    by a newer version.
    """
    with resources.as_file(resources.files(package) / "migrations") as folder:
        async with database.read() as connection:
            if await connection.run_sync(_is_up_to_date, folder):
                return
        config, script = _script(folder)
        async with database.alone() as connection:
            if not database.is_sqlite:
                await connection.run_sync(_ensure_schema, database.schema)
            await connection.run_sync(_upgrade, config, script)


def _is_up_to_date(connection: Connection, folder: Path) -> bool:
    """Asked without Alembic, whose import takes longer than all else here."""
    newest = max((file.name[:4] for file in (folder / "versions").glob("[0-9]*.py")), default="")
    if not inspect(connection).has_table(_STAMP):
        return False
    stamped = connection.exec_driver_sql(f"SELECT version_num FROM {_STAMP}").scalars().all()  # noqa: S608
    return list(stamped) == [newest]


def _script(folder: Path) -> tuple[Config, ScriptDirectory]:
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config, ScriptDirectory.from_config(config)


def _ensure_schema(connection: Connection, schema: str) -> None:
    # CREATE SCHEMA IF NOT EXISTS needs the right to create one even where it exists.
    if connection.exec_driver_sql("SELECT to_regnamespace(quote_ident(%s))", (schema,)).scalar() is None:
        quoted = connection.dialect.identifier_preparer.quote(schema)
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted}")


def _upgrade(connection: Connection, config: Config, script: ScriptDirectory) -> None:
    from alembic.runtime.environment import EnvironmentContext  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    def missing(current: Any, _context: Any) -> Any:
        return script._upgrade_revs("heads", current)  # what Alembic's own upgrade command calls

    with EnvironmentContext(config, script, fn=missing) as environment:
        # Both databases undo a CREATE TABLE; Alembic expects less of SQLite.
        environment.configure(connection=connection, transactional_ddl=True)
        try:
            environment.run_migrations()
        except CommandError as error:
            raise MigrationError(
                f"this database was written by another version of NeuroWeaver ({error}); "
                "run that version, or restore a backup"
            ) from error
