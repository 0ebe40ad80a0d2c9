"""Brings a service's tables to the form its code expects.

A service's package holds `migrations/versions/0001_….py`, plain Alembic revisions. There is no
alembic.ini and no env.py.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from neuroweaver.mesh.database import Database


class MigrationError(Exception):
    """The database cannot be brought to this version's form. The message says why."""


async def migrate(database: Database, package: str) -> None:
    """Runs the revisions of `package` that the database lacks: all of them, or none.

    Processes that start together do it one after the other. Raises MigrationError if the database was written
    by a newer version.
    """
    folder = resources.files(package) / "migrations"
    with resources.as_file(folder) as path:
        config = Config()
        config.set_main_option("script_location", str(path).replace("%", "%%"))
        script = ScriptDirectory.from_config(config)
        async with database.alone() as connection:
            if not database.is_sqlite:
                await connection.run_sync(_ensure_schema, database.schema)
            await connection.run_sync(_upgrade, config, script)


def _ensure_schema(connection: Connection, schema: str) -> None:
    # CREATE SCHEMA IF NOT EXISTS needs the right to create one even where it exists.
    if connection.exec_driver_sql("SELECT to_regnamespace(quote_ident(%s))", (schema,)).scalar() is None:
        quoted = connection.dialect.identifier_preparer.quote(schema)
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted}")


def _upgrade(connection: Connection, config: Config, script: ScriptDirectory) -> None:
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
