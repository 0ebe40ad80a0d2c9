"""The Experiment service's tables. Migrations make them; these definitions are what the queries speak of."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    and_,
)

from neuroweaver.mesh.database import idempotency
from neuroweaver.mesh.database.database import UtcDateTime, ascii_text

METADATA: Final = MetaData()


def _key() -> tuple[Column[str], Column[str]]:
    return (
        Column("project", ascii_text(128), primary_key=True),
        Column("test_id", ascii_text(64), primary_key=True),
    )


def of_experiment(table: Table, project: str, test_id: str) -> ColumnElement[bool]:
    """The rows of one experiment."""
    return and_(table.c.project == project, table.c.test_id == test_id)


experiments: Final = Table(
    "experiments",
    METADATA,
    *_key(),
    Column("state", Integer, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    # Of the layer whose buckets it holds; empty once it holds none.
    Column("layer_id", ascii_text(64), nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("hidden", Text, nullable=False),
    Index("experiments_by_time", "project", "create_time", "test_id"),
    Index("experiments_by_layer", "project", "layer_id"),
    Index("experiments_by_state", "state"),
)

# What lists are filtered by: `label:team`, `model_id`, `layer_id`.
facets: Final = Table(
    "facets",
    METADATA,
    *_key(),
    Column("name", ascii_text(128), primary_key=True),
    Column("value", String(256), primary_key=True),
    Index("facets_by_value", "project", "name", "value", "test_id"),
)

# A layer's salt, made with the first experiment that names it.
layers: Final = Table(
    "layers",
    METADATA,
    Column("project", ascii_text(128), primary_key=True),
    Column("layer_id", ascii_text(64), primary_key=True),
    Column("salt", ascii_text(32), nullable=False),
)

# One row a project: writers of configurations meet here.
projects: Final = Table(
    "projects",
    METADATA,
    Column("project", ascii_text(128), primary_key=True),
    Column("config_sequence", BigInteger, nullable=False),
)

# The last configuration of every experiment, under the sequence of its change.
configs: Final = Table(
    "configs",
    METADATA,
    *_key(),
    Column("sequence", BigInteger, nullable=False),
    Column("time", UtcDateTime, nullable=False),
    Column("config", LargeBinary, nullable=False),
    Index("configs_by_sequence", "project", "sequence"),
)

# What watches of results replay, and the history of the results.
result_events: Final = Table(
    "result_events",
    METADATA,
    *_key(),
    Column("sequence", BigInteger, primary_key=True),
    Column("time", UtcDateTime, nullable=False),
    Column("kind", ascii_text(24), nullable=False),
    Column("event", LargeBinary, nullable=False),
)

answers: Final = idempotency.table(METADATA)

# The accepted events of a transaction, in columns (`events.Batch`); all tables below follow from them.
event_batches: Final = Table(
    "event_batches",
    METADATA,
    *_key(),
    # In the order in which they were taken in.
    Column("number", BigInteger, primary_key=True),
    Column("received_time", UtcDateTime, nullable=False),
    Column("first_event_time", UtcDateTime, nullable=False),
    Column("last_event_time", UtcDateTime, nullable=False),
    Column("events", Integer, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    # By which a repeated event is recognised, see `keys`; null in older batches.
    Column("event_keys", LargeBinary, nullable=True),
    # Of the units of the events, see `event_ids`; null in older batches.
    Column("unit_marks", LargeBinary, nullable=True),
)

# The units as they were after a batch (`checkpoints`), in parts.
checkpoints: Final = Table(
    "checkpoints",
    METADATA,
    *_key(),
    Column("checkpoint_id", ascii_text(32), primary_key=True),
    Column("part", Integer, primary_key=True),
    Column("create_time", UtcDateTime, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

# The sufficient statistics of a metric in a variant and a phase.
cells: Final = Table(
    "cells",
    METADATA,
    *_key(),
    Column("phase", Integer, primary_key=True),
    Column("variant_id", ascii_text(64), primary_key=True),
    Column("metric_id", ascii_text(64), primary_key=True),
    Column("counts", Text, nullable=False),
    Column("observed", LargeBinary, nullable=False),
    Column("missing", LargeBinary, nullable=False),
    # What caps cut; null of a metric without caps, or from before this was counted.
    Column("cuts", LargeBinary, nullable=True),
    Column("sketch", LargeBinary, nullable=True),
)

# One row an experiment with all that is counted; those who take in events meet here.
totals: Final = Table(
    "totals",
    METADATA,
    *_key(),
    Column("last_batch", BigInteger, nullable=False),
    Column("expired_batches", BigInteger, nullable=False),
    Column("counts", Text, nullable=False),
    Column("checkpoint_id", ascii_text(32), nullable=True),
    Column("checkpoint_batch", BigInteger, nullable=False, server_default="0"),
    # Of the plan that can read the checkpoint.
    Column("checkpoint_form", ascii_text(32), nullable=False, server_default=""),
)
