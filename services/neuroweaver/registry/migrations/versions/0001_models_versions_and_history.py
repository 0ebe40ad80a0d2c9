"""Models, versions, their tags, the audit chain, the events of watches and the answers given."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    _models_and_versions()
    _history()
    op.create_table(idempotency.TABLE_NAME, *idempotency.columns())


def _models_and_versions() -> None:
    op.create_table(
        "models",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("model_id", _text(63), primary_key=True),
        sa.Column("delete_time", UtcDateTime),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("model_id", _text(63), primary_key=True),
        sa.Column("precedence", _text(512), primary_key=True),
        sa.Column("version", _text(128), nullable=False),
        sa.Column("is_prerelease", sa.Boolean, nullable=False),
        sa.Column("state", _text(16), nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("delete_time", UtcDateTime),
        sa.Column("record", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["project", "model_id"], ["models.project", "models.model_id"]),
    )
    op.create_index("versions_by_time", "versions", ["project", "model_id", "create_time", "precedence"])
    op.create_table(
        "tags",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("model_id", _text(63), primary_key=True),
        sa.Column("precedence", _text(512), primary_key=True),
        sa.Column("name", _text(63), primary_key=True),
        sa.Column("value", _text(256), nullable=False),
    )
    op.create_index("tags_by_value", "tags", ["project", "name", "value", "model_id", "precedence"])


def _history() -> None:
    op.create_table(
        "audit_heads",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("hash", _text(64), nullable=False),
    )
    op.create_table(
        "audit_events",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("time", UtcDateTime, nullable=False),
        sa.Column("actor", _text(256), nullable=False),
        sa.Column("action", _text(64), nullable=False),
        sa.Column("model_id", _text(63), nullable=False),
        sa.Column("version", _text(128), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("changes", sa.Text, nullable=False),
        sa.Column("trace_id", _text(32), nullable=False),
        sa.Column("previous_hash", _text(64), nullable=False),
        sa.Column("hash", _text(64), nullable=False),
    )
    op.create_index("audit_events_by_model", "audit_events", ["project", "model_id", "sequence"])
    op.create_table(
        "model_events",
        sa.Column("project", _text(128), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("time", UtcDateTime, nullable=False),
        sa.Column("action", _text(64), nullable=False),
        sa.Column("model_id", _text(63), nullable=False),
        sa.Column("subject", _text(16), nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    _make_append_only("audit_events")


def _make_append_only(table: str) -> None:
    """What happened cannot be unsaid by a slip or by a statement meant for another table."""
    if op.get_bind().dialect.name == "sqlite":
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
                "BEGIN SELECT RAISE(ABORT, 'the audit history is append-only'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit history is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_refuse()"
    )


def _text(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
