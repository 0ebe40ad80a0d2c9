"""The Registry's tables. Migrations make them; these definitions are what the queries speak of."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    literal_column,
)

from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import UtcDateTime, ascii_text

METADATA: Final = MetaData()


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
    Index("versions_by_state", "project", "model_id", "state", "precedence"),
)

_IS_RELEASE: Final = versions.c.is_prerelease.is_(False)
# Ranges pass over prereleases, of which there may be any number.
Index(
    "versions_released",
    versions.c.project,
    versions.c.model_id,
    versions.c.precedence,
    sqlite_where=_IS_RELEASE,
    postgresql_where=_IS_RELEASE,
)

# Which stored files a version holds: what garbage collection must leave alone.
version_artifacts: Final = Table(
    "version_artifacts",
    METADATA,
    Column("project", ascii_text(128), primary_key=True),
    Column("model_id", ascii_text(63), primary_key=True),
    Column("precedence", ascii_text(512), primary_key=True),
    Column("digest", ascii_text(64), primary_key=True),
    Index("version_artifacts_by_digest", "digest"),
)

# Every stored file, of all projects. Whoever is about to use or to collect one takes hold of its row.
blobs: Final = Table(
    "blobs",
    METADATA,
    Column("digest", ascii_text(64), primary_key=True),
    Column("last_used", UtcDateTime, nullable=False),
    Index("blobs_by_use", "last_used"),
)

# Where an alias points and has pointed: one row for each stretch of time. The last one has no end.
alias_spans: Final = Table(
    "alias_spans",
    METADATA,
    Column("project", ascii_text(128), primary_key=True),
    Column("model_id", ascii_text(63), primary_key=True),
    Column("alias", ascii_text(63), primary_key=True),
    Column("since", UtcDateTime, primary_key=True),
    # Of the change that began it: two changes may fall on one microsecond.
    Column("sequence", BigInteger, primary_key=True),
    Column("until", UtcDateTime),
    Column("precedence", ascii_text(512), nullable=False),
    Column("version", ascii_text(128), nullable=False),
    Column("actor", ascii_text(256), nullable=False),
    Column("is_protected", Boolean, nullable=False),
)
_IS_CURRENT: Final = alias_spans.c.until.is_(None)
# An alias points at one version at a time: the database itself says so.
Index(
    "aliases_now",
    alias_spans.c.project,
    alias_spans.c.model_id,
    alias_spans.c.alias,
    unique=True,
    sqlite_where=_IS_CURRENT,
    postgresql_where=_IS_CURRENT,
)
Index(
    "aliases_of_version",
    alias_spans.c.project,
    alias_spans.c.model_id,
    alias_spans.c.precedence,
    sqlite_where=_IS_CURRENT,
    postgresql_where=_IS_CURRENT,
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

_IS_OF_MODEL: Final = tags.c.precedence == literal_column("''")
Index(
    "tags_of_models",
    tags.c.project,
    tags.c.name,
    tags.c.value,
    tags.c.model_id,
    tags.c.precedence,
    sqlite_where=_IS_OF_MODEL,
    postgresql_where=_IS_OF_MODEL,
)

# One row a project, updated by every change: writers meet here, and a chain that was cut short shows.
audit_heads: Final = Table(
    "audit_heads",
    METADATA,
    Column("project", ascii_text(128), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", ascii_text(64), nullable=False),
    # Of the last event: time in the history never runs backwards, whatever the clock does.
    Column("time", UtcDateTime),
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
    Index("model_events_by_model", "project", "model_id", "sequence"),
)

answers: Final = idempotency.table(METADATA)

webhooks: Final = Table(
    "webhooks",
    METADATA,
    Column("project", ascii_text(128), primary_key=True),
    Column("webhook_id", ascii_text(63), primary_key=True),
    Column("url", Text, nullable=False),
    # A JSON list; empty: all.
    Column("actions", Text, nullable=False),
    Column("model_id", ascii_text(63), nullable=False),
    Column("secret", ascii_text(64), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
)

# The outbox: a change and what is to be sent of it are committed together.
webhook_deliveries: Final = Table(
    "webhook_deliveries",
    METADATA,
    Column("project", ascii_text(128), primary_key=True),
    Column("webhook_id", ascii_text(63), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("action", ascii_text(64), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("state", ascii_text(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_time", UtcDateTime),
    Column("last_attempt_time", UtcDateTime),
    Column("last_status", Integer, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("claim", ascii_text(26)),
    ForeignKeyConstraint(["project", "webhook_id"], ["webhooks.project", "webhooks.webhook_id"]),
    Index("webhook_deliveries_by_state", "project", "webhook_id", "state", "sequence"),
    Index("webhook_deliveries_by_attempt", "project", "webhook_id", "last_attempt_time"),
)
_IS_CLAIMED: Final = webhook_deliveries.c.claim.is_not(None)
# One delivery of a webhook is under way at a time: the database itself says so.
Index(
    "webhook_deliveries_claimed",
    webhook_deliveries.c.project,
    webhook_deliveries.c.webhook_id,
    unique=True,
    sqlite_where=_IS_CLAIMED,
    postgresql_where=_IS_CLAIMED,
)
