"""The Deployer's tables. Migrations make them; these definitions are what the queries speak of."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.schema import SchemaItem

from neuroweaver.deployer.domain.metrics.counts import MEASURES
from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import UtcDateTime, ascii_text

METADATA: Final = MetaData()
_KEY: Final = {"project": 128, "model_id": 63, "name": 32}
"""The columns that name a deployment, with their lengths."""


def key_columns() -> list[Column[Any]]:
    return [Column(name, ascii_text(length), primary_key=True) for name, length in _KEY.items()]


def _of_deployment(table: str, *own: SchemaItem) -> Table:
    """A table of what belongs to deployments. own: beside the columns that name one."""
    owner = ForeignKeyConstraint([*_KEY], [f"deployments.{name}" for name in _KEY])
    return Table(table, METADATA, *key_columns(), *own, owner)


# A deployment that is gone keeps its row: its events go on from there if it is made again.
deployments: Final = Table(
    "deployments",
    METADATA,
    *key_columns(),
    Column("resource_name", ascii_text(63), nullable=False, unique=True),
    Column("state", Integer, nullable=False),
    Column("alias", ascii_text(63), nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    # Of the last event, and of the first one since it was made last.
    Column("last_sequence", BigInteger, nullable=False),
    Column("first_sequence", BigInteger, nullable=False),
    Column("record", Text, nullable=False),
    Index("deployments_by_time", "project", "create_time", "model_id", "name"),
    Index("deployments_by_state", "state"),
)

# Labels once more, to be searched.
labels: Final = _of_deployment(
    "labels",
    Column("label", ascii_text(253), primary_key=True),
    Column("value", ascii_text(63), nullable=False),
    Index("labels_by_value", "project", "label", "value", "model_id", "name"),
)

# What happened, by whom: for watches, and as the audit.
events: Final = _of_deployment(
    "events",
    Column("sequence", BigInteger, primary_key=True),
    Column("time", UtcDateTime, nullable=False),
    Column("actor", ascii_text(256), nullable=False),
    Column("event", LargeBinary, nullable=False),
    Index("events_by_time", "time"),
)

log_lines: Final = _of_deployment(
    "log_lines",
    Column("sequence", BigInteger, primary_key=True),
    Column("time", UtcDateTime, nullable=False),
    Column("replica_id", ascii_text(253), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("level", ascii_text(16), nullable=False),
    Column("message", Text, nullable=False),
)

# How far each replica's log has been read.
log_cursors: Final = _of_deployment(
    "log_cursors",
    Column("replica_id", ascii_text(253), primary_key=True),
    Column("cursor", Text, nullable=False),
    Column("time", UtcDateTime, nullable=False),
)

# What the replicas of a revision had counted at a moment.
measurements: Final = _of_deployment(
    "measurements",
    Column("time", UtcDateTime, primary_key=True),
    Column("revision", BigInteger, primary_key=True),
    Column("record", Text, nullable=False),
    Index("measurements_by_time", "time"),
)

# What routers measured from outside.
samples: Final = _of_deployment(
    "samples",
    Column("sequence", BigInteger, primary_key=True),
    Column("time", UtcDateTime, nullable=False),
    Column("source", String(128), nullable=False),
    Column("actor", ascii_text(256), nullable=False),
    Column("version", ascii_text(128), nullable=False),
    Column("requests", BigInteger, nullable=False),
    *(Column(name, Float) for name in MEASURES),
    Index("samples_of_deployment", "project", "model_id", "name", "time"),
    Index("samples_by_time", "time"),
)

# Who runs the loop. token rises with every new holder, beat while one lives.
leases: Final = Table(
    "leases",
    METADATA,
    Column("lease", ascii_text(63), primary_key=True),
    Column("holder", ascii_text(64), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("beat", BigInteger, nullable=False),
)

answers: Final = idempotency.table(METADATA)
