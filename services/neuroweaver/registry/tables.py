"""The Registry's tables. Migrations make them; these definitions are what the queries speak of."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, Column, ForeignKeyConstraint, Index, MetaData, String, Table, Text

from neuroweaver.mesh import idempotency
from neuroweaver.mesh.database import UtcDateTime

METADATA: Final = MetaData()


def ascii_text(length: int) -> Any:
    """Text that sorts byte by byte in both databases, whatever the language of the server."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


models: Final = Table(
    "models",
    METADATA,
    Column("project", ascii_text(128), primary_key=True),
    Column("model_id", ascii_text(63), primary_key=True),
    Column("delete_time", UtcDateTime),
    Column("record", Text, nullable=False),
)

versions: Final = Table(
    "versions",
    METADATA,
    Column("project", ascii_text(128), primary_key=True),
    Column("model_id", ascii_text(63), primary_key=True),
    # A version is known by its place in the order: what differs in build metadata alone is the same version.
    Column("precedence", ascii_text(512), primary_key=True),
    Column("version", ascii_text(128), nullable=False),
    Column("is_prerelease", Boolean, nullable=False),
    Column("state", ascii_text(16), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("delete_time", UtcDateTime),
    Column("record", Text, nullable=False),
    ForeignKeyConstraint(["project", "model_id"], ["models.project", "models.model_id"]),
    Index("versions_by_time", "project", "model_id", "create_time", "precedence"),
)

# Tags once more, to be searched. A model's own have an empty precedence.
tags: Final = Table(
    "tags",
    METADATA,
    Column("project", ascii_text(128), primary_key=True),
    Column("model_id", ascii_text(63), primary_key=True),
    Column("precedence", ascii_text(512), primary_key=True),
    Column("name", ascii_text(63), primary_key=True),
    Column("value", ascii_text(256), nullable=False),
    Index("tags_by_value", "project", "name", "value", "model_id", "precedence"),
)

# One row a project, updated by every change: writers meet here, and a chain that was cut short shows.
audit_heads: Final = Table(
    "audit_heads",
    METADATA,
    Column("project", ascii_text(128), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", ascii_text(64), nullable=False),
)

# Triggers refuse to change or delete its rows.
audit_events: Final = Table(
    "audit_events",
    METADATA,
    Column("project", ascii_text(128), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("time", UtcDateTime, nullable=False),
    Column("actor", ascii_text(256), nullable=False),
    Column("action", ascii_text(64), nullable=False),
    Column("model_id", ascii_text(63), nullable=False),
    Column("version", ascii_text(128), nullable=False),
    Column("reason", Text, nullable=False),
    Column("changes", Text, nullable=False),
    Column("trace_id", ascii_text(32), nullable=False),
    Column("previous_hash", ascii_text(64), nullable=False),
    Column("hash", ascii_text(64), nullable=False),
    Index("audit_events_by_model", "project", "model_id", "sequence"),
)

# What watches replay: the subject as it was after each change, under the sequence of its audit event.
model_events: Final = Table(
    "model_events",
    METADATA,
    Column("project", ascii_text(128), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("time", UtcDateTime, nullable=False),
    Column("action", ascii_text(64), nullable=False),
    Column("model_id", ascii_text(63), nullable=False),
    Column("subject", ascii_text(16), nullable=False),
    Column("record", Text, nullable=False),
)

answers: Final = idempotency.table(METADATA)
