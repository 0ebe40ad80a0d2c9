"""Aliases with their past, the files that versions hold, and the time of the last event."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from neuroweaver.mesh.database.database import UtcDateTime
from neuroweaver.mesh.wire.clock import utc_now

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("audit_heads", sa.Column("time", UtcDateTime))
    op.create_index("versions_by_state", "versions", ["project", "model_id", "state", "precedence"])
    _lists()
    _aliases()
    _files()


def _lists() -> None:
    op.create_index(
        "versions_released",
        "versions",
        ["project", "model_id", "precedence"],
        sqlite_where=sa.text("is_prerelease IS 0"),
        postgresql_where=sa.text("is_prerelease IS false"),
    )
    of_model = sa.text("precedence = ''")
    op.create_index(
        "tags_of_models",
        "tags",
        ["project", "name", "value", "model_id", "precedence"],
        sqlite_where=of_model,
        postgresql_where=of_model,
    )


def _aliases() -> None:
    op.create_table(
        "alias_spans",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("model_id", _text(63), primary_key=True),
        sa.Column("alias", _text(63), primary_key=True),
        sa.Column("since", UtcDateTime, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("until", UtcDateTime),
        sa.Column("precedence", _text(512), nullable=False),
        sa.Column("version", _text(128), nullable=False),
        sa.Column("actor", _text(256), nullable=False),
        sa.Column("is_protected", sa.Boolean, nullable=False),
    )
    is_current = sa.text("until IS NULL")
    current: dict[str, Any] = {"sqlite_where": is_current, "postgresql_where": is_current}
    op.create_index("aliases_now", "alias_spans", ["project", "model_id", "alias"], unique=True, **current)
    op.create_index("aliases_of_version", "alias_spans", ["project", "model_id", "precedence"], **current)


def _files() -> None:
    op.create_table(
        "version_artifacts",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("model_id", _text(63), primary_key=True),
        sa.Column("precedence", _text(512), primary_key=True),
        sa.Column("digest", _text(64), primary_key=True),
    )
    op.create_index("version_artifacts_by_digest", "version_artifacts", ["digest"])
    op.create_table(
        "blobs",
        sa.Column("digest", _text(64), primary_key=True),
        sa.Column("last_used", UtcDateTime, nullable=False),
    )
    op.create_index("blobs_by_use", "blobs", ["last_used"])
    _fill()


def _fill() -> None:
    """From the versions that are there already."""
    connection = op.get_bind()
    columns = ["project", "model_id", "precedence", "record"]
    versions = sa.table("versions", *map(sa.column, columns))
    held = sa.table("version_artifacts", *map(sa.column, [*columns[:3], "digest"]))
    digests: set[str] = set()
    for row in connection.execute(sa.select(versions)).mappings().all():
        found = _digests(row)
        digests |= found
        if found:
            key = {name: row[name] for name in columns[:3]}
            connection.execute(sa.insert(held), [key | {"digest": digest} for digest in sorted(found)])
    if digests:
        blobs = sa.table("blobs", sa.column("digest"), sa.column("last_used", UtcDateTime()))
        now = utc_now()
        rows = [{"digest": digest, "last_used": now} for digest in sorted(digests)]
        connection.execute(sa.insert(blobs), rows)


def _digests(row: sa.RowMapping) -> set[str]:
    return {artifact["digest"] for artifact in json.loads(row["record"])["artifacts"]}


def _text(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
